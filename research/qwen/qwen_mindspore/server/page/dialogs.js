// What lies over the page: a question, a short notice, and what a screen reader is told.
import { el, iconButton, say } from "./dom.js";
import { t } from "./i18n.js";

/** Ask before something is lost: a promise of whether the user wants it. Escape means no. */
export function ask(question, values, yes) {
  return new Promise(resolve => {
    const focused = document.activeElement;
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-text" },
      el("p", { id: "ask-text", t: question, tValues: values }),
      el("div", { class: "row end" },
        el("button", { type: "button", class: "plain", t: "cancel", autofocus: true, onclick: () => dialog.close() }),
        el("button", { type: "button", class: "danger", t: yes, onclick: () => dialog.close("yes") })));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (focused?.isConnected) focused.focus();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A line over the page, until it is closed or a while has passed; said aloud. */
export function notify(text, { isError = false } = {}) {
  const note = el("div", { class: isError ? "notice error" : "notice", role: isError ? "alert" : "status" },
    el("span", {}, text), iconButton("close", "close", () => note.remove()));
  // A modal dialog covers all that is not within it.
  (document.querySelector("dialog[open]") ?? document.body).append(note);
  if (!isError) setTimeout(() => note.remove(), 5000);
}

/** Tell those who hear the page, once what is being said has ended. Not each token: one would hear nothing else. */
export function announce(key, values, text = "") {
  const place = document.getElementById("announcer");
  say(place, key, values);
  if (text) place.textContent = `${t(key, values)} ${text}`;
}
