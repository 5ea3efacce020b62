// The conversation as it is shown: its messages, what is missing behind them, and the place that is seen.
import { openCalls, wantsAnswer } from "./conversation.js";
import { el, icon } from "./dom.js";
import { Pace } from "./growing.js";
import { translate } from "./i18n.js";
import { AnswerView, failureBox, questionView } from "./message.js";

const NEAR = 80;  // pixels from the end within which the page goes along with what is written
const EXAMPLES = ["example1", "example2", "example3"];

export class Log {
  #chat;
  #service;
  #place;
  #scroller;
  #toEnd;
  #running = null;  // {view, run}
  #views = new WeakMap();  // message -> its element or AnswerView
  #isFollowing = true;
  #pace = new Pace(() => this.#grow());

  /** `options`: {suggest(text), openKey()}: what the buttons of an empty chat and of a failure do. */
  constructor(chat, service, { suggest, openKey }) {
    this.#chat = chat;
    this.#service = service;
    this.suggest = suggest;
    this.openKey = openKey;
    this.#place = document.getElementById("messages");
    this.#scroller = document.getElementById("log");
    this.#toEnd = document.getElementById("to-end");
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#toEnd.addEventListener("click", () => this.follow());
    chat.addEventListener("conversation", () => this.show());
    chat.addEventListener("growth", () => this.#pace.request());
    chat.addEventListener("phase", () => this.#showPhase());
    setInterval(() => this.#showPhase(), 1000);
    this.show();
  }

  /** Show the conversation as it is; what has not changed stays where it is, with what is selected or typed in it. */
  show() {
    const { conversation, run } = this.#chat;
    const isOther = this.shown !== conversation || run && run.start === undefined;
    const hadFocus = this.#place.contains(document.activeElement);
    this.shown = conversation;
    this.#running = null;
    const views = conversation.messages.map(message => this.#elementOf(message)).filter(Boolean);
    this.#put([...(views.length ? views : [this.#welcome()]), ...this.#missing()]);
    translate(this.#place);  // the language may have changed while they were not shown
    this.#place.classList.toggle("busy", Boolean(run));  // no question can be changed then
    // What had the focus is gone: stay near.
    if (hadFocus && !this.#place.contains(document.activeElement)) this.#scroller.focus({ preventScroll: true });
    this.#showPhase();
    if (isOther || this.#isFollowing) this.follow();
    else this.#scrolled();
  }

  #put(elements) {
    const { children } = this.#place;
    elements.forEach((element, at) => {
      if (children[at] !== element) this.#place.insertBefore(element, children[at] ?? null);
    });
    while (children.length > elements.length) this.#place.lastElementChild.remove();
  }

  /** Go to the end, and along with it. */
  follow() {
    this.#isFollowing = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#toEnd.hidden = true;
  }

  #elementOf(message) {
    if (message.role === "user") return this.#questionOf(message);
    if (message.role === "assistant") return this.#answerOf(message);
    return null;  // a result stands in the card of its call
  }

  #questionOf(message) {
    let element = this.#views.get(message);
    // One that is being edited stays as it is, unless it was sent.
    if (!element) {
      element = questionView(message, { edit: text => this.#chat.edit(message, text),
        remove: () => this.#chat.removeTurn(message) });
      this.#views.set(message, element);
    }
    return element;
  }

  #answerOf(message) {
    const { run, conversation: { messages } } = this.#chat;
    const isPlain = !this.#service.isChat;
    let view = this.#views.get(message);
    if (view?.isPlain !== isPlain) {
      view = new AnswerView(message, isPlain);
      this.#views.set(message, view);
    }
    if (run?.answer === message) {
      // The clock of a run, not of its view: a conversation that is left and shown again has waited as long.
      run.start ??= performance.now();
      this.#running = { view, run };
      view.grow();
    } else {
      view.finish(messages, { giveResult: (id, text) => this.#chat.giveResult(id, text),
        regenerate: !run && messages.at(-1) === message ? () => this.#chat.regenerate() : null });
    }
    return view.element;
  }

  #grow() {
    if (!this.#running) return;
    this.#running.view.grow();
    if (this.#isFollowing) this.follow();
  }

  #showPhase() {
    if (!this.#running) return;
    const { view, run } = this.#running;
    view.showPhase(run.phase, Math.floor((performance.now() - run.start) / 1000));
    if (this.#isFollowing) this.follow();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#isFollowing = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#toEnd.hidden = this.#isFollowing;
  }

  /** A question without an answer: why, and what to do. */
  #missing() {
    const { conversation: { messages }, failure, run } = this.#chat;
    if (run) return [];
    const again = el("button", { type: "button", class: "plain", t: "tryAgain", onclick: () => this.#chat.answer() });
    if (failure) {
      const key = failure.status === 401 || failure.status === 403
        ? el("button", { type: "button", class: "primary", t: "enterKey", onclick: this.openKey }) : null;
      return [failureBox(failure, ...[key, wantsAnswer(messages) ? again : null].filter(Boolean))];
    }
    if (!wantsAnswer(messages) || openCalls(messages).length) return [];
    return [el("div", { class: "row unanswered" }, el("span", { class: "hint", t: "noAnswer" }), again)];
  }

  #welcome() {
    const examples = EXAMPLES.map(key => {
      const button = el("button", { type: "button", class: "example", t: key,
        onclick: () => this.suggest(button.textContent) });
      return button;
    });
    const isChat = this.#service.isChat;
    return el("div", { class: "welcome" }, icon("brand"), el("h2", { t: isChat ? "welcome" : "welcomeBase" }),
      el("p", { class: "hint", t: isChat ? "welcomeHint" : "welcomeBaseHint" }),
      isChat ? el("div", { class: "examples" }, ...examples) : null);
  }
}
