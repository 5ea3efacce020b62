// Where the user writes: Enter sends, Shift+Enter begins a line, Escape stops an answer.
import { openCalls } from "./conversation.js";
import { isComposing, label, say } from "./dom.js";

export class Composer {
  #chat;
  #service;
  #area = document.getElementById("question");
  #send = document.getElementById("send");
  #stop = document.getElementById("stop");
  #hint = document.getElementById("composer-hint");

  constructor(chat, service) {
    this.#chat = chat;
    this.#service = service;
    document.getElementById("composer").addEventListener("submit", event => {
      event.preventDefault();
      this.#submit();
    });
    this.#stop.addEventListener("click", () => this.#halt());
    this.#area.addEventListener("input", () => this.#fit());
    this.#area.addEventListener("keydown", event => {
      if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) {
        event.preventDefault();
        this.#submit();
      }
    });
    addEventListener("keydown", event => {
      const isElsewhere = event.defaultPrevented || document.querySelector("dialog[open]");
      if (event.key === "Escape" && chat.run && !isComposing(event) && !isElsewhere) this.#halt();
    });
    chat.addEventListener("conversation", () => this.#update());
    chat.addEventListener("end", () => this.#update());
    service.addEventListener("model", () => this.#update());
    this.#update();
  }

  /** Put a text there, to be changed or sent. */
  fill(text) {
    this.#area.value = text;
    this.#fit();
    this.#area.focus();
  }

  focus() {
    this.#area.focus();
  }

  #submit() {
    const text = this.#area.value;
    if (!text.trim() || this.#chat.run || this.#send.disabled) return;
    this.#area.value = "";
    this.#fit();
    this.#chat.ask(text);
  }

  #halt() {
    this.#chat.stop();
    this.#area.focus();  // the button goes away
  }

  #update() {
    const { run, conversation } = this.#chat;
    const isWaiting = !run && openCalls(conversation.messages).length > 0;
    const hadFocus = document.activeElement === this.#stop;
    this.#send.hidden = Boolean(run);
    this.#stop.hidden = !run;
    this.#send.disabled = isWaiting;
    if (hadFocus && !run) this.#area.focus();
    const isChat = this.#service.isChat;
    this.#area.dataset.tPlaceholder = isChat ? "askPlaceholder" : "continuePlaceholder";
    label(this.#area, isChat ? "askLabel" : "continueLabel");
    label(this.#send, isChat ? "send" : "continueSend");
    say(this.#hint, isWaiting ? "answerCallFirst" : "composerHint");
  }

  #fit() {
    this.#area.style.height = "auto";
    this.#area.style.height = `${Math.min(this.#area.scrollHeight, 240)}px`;
  }
}
