// A tool call as a card: the tool's name, its arguments, and the result, which the user writes by hand.
import { el, icon, isComposing, say } from "./dom.js";
import { laidOut } from "./tools.js";

/**
 * @param call {id, name, arguments}
 * @param state "writing": it is still being written; "open": it waits for its result; "done"
 * @param result the message that answers it, where it is done
 * @param give called with (id, text) when the user answers, where it is open
 * The element has `showArguments(text)`, for a call that grows.
 */
export function callCard(call, state, result, give) {
  const code = el("code", {}, state === "writing" ? call.arguments : laidOut(call.arguments));
  const words = { writing: "callWriting", open: "callOpen", done: "callDone" };
  const card = el("section", { class: "card", "data-state": state, tLabel: "callLabel", tValues: { name: call.name } },
    el("div", { class: "card-head" }, icon("tool"), el("strong", {}, call.name),
      el("span", { class: "card-state", t: words[state] })),
    el("pre", { tabindex: 0 }, code));
  if (state === "done") {
    card.append(el("div", { class: "card-result" }, el("span", { class: "hint", t: "result" }),
      el("pre", { tabindex: 0 }, result.content)));
  } else if (state === "open") {
    card.append(answerForm(call, give));
  }
  card.showArguments = text => { code.textContent = text; };
  return card;
}

function answerForm(call, give) {
  const area = el("textarea", { rows: 2, tLabel: "resultLabel", tPlaceholder: "resultPlaceholder",
    tValues: { name: call.name } });
  const warning = el("p", { class: "hint", role: "alert" });
  const form = el("form", { class: "card-answer", onsubmit: event => {
    event.preventDefault();
    if (area.value.trim()) give(call.id, area.value);
    else say(warning, "resultEmpty");
  } }, area, warning,
  el("div", { class: "row end" }, el("button", { type: "submit", class: "primary", t: "giveResult" })));
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}
