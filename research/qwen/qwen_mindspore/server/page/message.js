// One message as it stands in the conversation.
import { callCard } from "./card.js";
import { resultOf } from "./conversation.js";
import { copyFrom, el, icon, iconButton, isComposing, say } from "./dom.js";
import { GrowingMarkdown } from "./growing.js";
import { translate } from "./i18n.js";

/** The element of what the user wrote. `actions`: {edit(text), remove()} */
export function questionView({ content }, actions) {
  const copy = iconButton("copy", "copy", () => copyFrom(copy, content));
  const edit = iconButton("edit", "edit", () => openEditor(article, content, actions.edit));
  const article = el("article", { class: "message question" },
    el("h2", { class: "hidden", t: "you" }),
    el("div", { class: "bubble" }, content),
    el("div", { class: "actions" }, copy, edit, iconButton("remove", "removeTurn", actions.remove)));
  return article;
}

function openEditor(article, content, send) {
  const shown = [...article.children];
  const close = () => {
    article.replaceChildren(...shown);
    translate(article);
    article.classList.remove("editing");
    article.querySelector("[data-t-label=edit]").focus();
  };
  const area = el("textarea", { tLabel: "editQuestion", rows: 3 });
  const form = el("form", { class: "editor", onsubmit: event => {
    event.preventDefault();
    if (area.value.trim()) send(area.value);
  } }, area,
  el("p", { class: "hint", t: "editHint" }),
  el("div", { class: "row end" }, el("button", { type: "button", class: "plain", t: "cancel", onclick: close }),
    el("button", { type: "submit", class: "primary", t: "resend" })));
  area.value = content;
  area.rows = Math.min(12, content.split("\n").length + 1);
  area.addEventListener("keydown", event => {
    if (event.key === "Escape" && !isComposing(event)) {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  article.classList.add("editing");
  article.replaceChildren(form);
  area.focus();
}

/** What the model wrote. */
export class AnswerView {
  #content;
  #thought = null;

  /** `isPlain`: it is a text that goes on, no Markdown. */
  constructor(answer, isPlain) {
    this.answer = answer;
    this.isPlain = isPlain;
    const body = el("div", { class: "markdown" });
    this.#content = { body, growing: new GrowingMarkdown(body) };
    this.status = el("p", { class: "phase" });
    this.cards = el("div", { class: "cards" });
    this.notes = el("div", {});
    this.foot = el("div", { class: "foot" });
    this.thoughtPlace = el("div", {});
    this.element = el("article", { class: "message answer" },
      el("h2", { class: "author" }, icon("brand"), el("span", { t: isPlain ? "continuation" : "assistant" })),
      this.thoughtPlace, body, this.cards, this.status, this.notes, this.foot);
  }

  /**
   * Show it all, which is over.
   *
   * @param messages the conversation's, among which the results of calls are
   * @param actions {regenerate() or null, giveResult(id, text)}
   */
  finish(messages, actions) {
    this.#update(true);
    const at = messages.indexOf(this.answer);
    this.#showCalls(call => [resultOf(messages, at, call.id), actions.giveResult]);
    this.#showEnd(actions.regenerate);
  }

  /** Show what it has grown by. */
  grow() {
    this.#update(false);
    this.#showCalls(() => [undefined, null]);
  }

  #update(isDone) {
    const { answer, isPlain } = this;
    this.element.classList.toggle("running", !isDone);
    this.#showThought(isDone);
    if (isPlain) this.#content.body.textContent = answer.content;
    else this.#content.growing.show(answer.content, isDone);
    this.#content.body.classList.toggle("plain-text", isPlain);
  }

  /** Say what the request is waiting for, or nothing. */
  showPhase({ phase, seconds, status, queued }, elapsed) {
    const isQuiet = phase === "answering";
    this.status.hidden = isQuiet;
    if (isQuiet) return;
    if (phase === "retrying") say(this.status, status === 429 ? "retryFull" : "retryLoading", { seconds });
    else if (queued) say(this.status, "queued", { queued, seconds: elapsed });
    else say(this.status, phase === "sending" ? "sending" : "waiting", { seconds: elapsed });
  }

  #showThought(isDone) {
    const { reasoning, content, calls } = this.answer;
    if (!reasoning) return;
    if (!this.#thought) {
      const body = el("div", { class: "thought-text" });
      const summary = el("summary", {});
      this.#thought = { body, summary, details: el("details", { class: "thought" }, summary, body) };
      this.thoughtPlace.append(this.#thought.details);
    }
    this.#thought.body.textContent = reasoning;
    say(this.#thought.summary, isDone || content || calls.length ? "thought" : "thinking");
  }

  #showCalls(stateOf) {
    this.answer.calls.forEach((call, at) => {
      const [result, give] = stateOf(call);
      const state = result ? "done" : give ? "open" : "writing";
      const shown = this.cards.children[at];
      if (shown?.dataset.state === state) {  // a result may be half typed there
        if (state === "writing") shown.showArguments(call.arguments);
        return;
      }
      const card = callCard(call, state, result, give);
      if (shown) shown.replaceWith(card);
      else this.cards.append(card);
    });
    [...this.cards.children].slice(this.answer.calls.length).forEach(card => card.remove());
  }

  #showEnd(regenerate) {
    const { answer } = this;
    const notes = { stopped: "wasStopped", length: "wasCut" };
    const key = notes[answer.finish];
    this.status.hidden = true;
    const copy = iconButton("copy", "copy", () => copyFrom(copy, answer.content));
    const again = regenerate && iconButton("again", "regenerate", regenerate);
    const stats = el("span", { class: "stats" });
    if (answer.stats) statsText(stats, answer.stats);
    this.foot.replaceChildren(el("div", { class: "actions" }, answer.content ? copy : null, again), stats);
    this.notes.replaceChildren(...[key && el("p", { class: "note", t: key }),
      answer.error && failureBox(answer.error)].filter(Boolean));
  }
}

function statsText(place, { tokens, isExact, seconds, first, cached, promptTokens }) {
  const rate = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  const add = (key, values) => place.append(el("span", { t: key, tValues: values }));
  add(isExact ? "statTokens" : "statPieces", { tokens });
  if (rate !== null && isExact) add("statRate", { rate: rate < 10 ? rate.toFixed(1) : Math.round(rate) });
  add("statFirst", { seconds: first < 10 ? first.toFixed(2) : first.toFixed(1) });
  if (promptTokens !== undefined) {
    add(cached ? "statCached" : "statPrompt", { cached, prompt: promptTokens });
  }
}

/** Why there is no answer, or no more of one; `actions`: buttons. */
export function failureBox({ message, status, code, param }, ...actions) {
  const hints = { 401: "errorKey", 403: "errorKey", 429: "errorFull", 503: "errorLoading" };
  const words = { unreachable: "errorUnreachable", broken: "errorBroken", tools: "errorTools" };
  const key = hints[status] ?? words[code];
  const facts = [status || null, param].filter(Boolean).join(" · ");
  const text = code === "unreachable" ? "" : [message, facts && `(${facts})`].filter(Boolean).join(" ");
  return el("div", { class: "failure" }, icon("warning"),
    el("div", {}, el("p", { t: key ?? "errorOther" }), text ? el("p", { class: "detail" }, text) : null,
      actions.length ? el("div", { class: "row" }, ...actions) : null));
}
