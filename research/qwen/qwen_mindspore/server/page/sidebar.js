// The list of conversations: open, rename, delete.
import { ask } from "./dialogs.js";
import { el, iconButton, isComposing, say } from "./dom.js";

const NARROW = matchMedia("(max-width: 800px)");

export class Sidebar {
  #chat;
  #store;
  #place = document.getElementById("conversations");
  #element = document.getElementById("sidebar");
  #opener = document.getElementById("open-sidebar");
  #editing = null;  // the id of the one that is being renamed

  constructor(chat, store) {
    this.#chat = chat;
    this.#store = store;
    document.getElementById("new-chat").addEventListener("click", () => {
      chat.begin();
      this.close();
      document.getElementById("question").focus();
    });
    this.#opener.addEventListener("click", () => this.#open());
    document.getElementById("close-sidebar").addEventListener("click", () => this.close(true));
    document.getElementById("shade").addEventListener("click", () => this.close(true));
    this.#element.addEventListener("keydown", event => {
      if (event.key === "Escape" && NARROW.matches && !this.#editing) this.close(true);
    });
    NARROW.addEventListener("change", () => this.close());
    chat.addEventListener("list", () => this.show());
    chat.addEventListener("conversation", () => this.show());
    this.close();
    this.show();
  }

  show() {
    if (this.#editing) return;  // it would be lost; the list is shown again when it is done
    const items = this.#store.list.map(head => this.#item(head));
    const empty = el("li", { class: "hint none", t: "noConversations" });
    const focused = document.activeElement?.closest?.("#conversations [data-id]")?.dataset;
    const kind = document.activeElement?.dataset.kind;
    this.#place.replaceChildren(...(items.length ? items : [empty]));
    if (focused) this.#focus(focused.id, kind);
  }

  /** On a narrow page the list lies over the conversation, and nothing beneath it can be reached. */
  #open() {
    document.body.classList.add("sidebar-open");
    this.#element.inert = false;
    document.querySelector("main").inert = true;
    document.getElementById("close-sidebar").focus();
  }

  close(isByUser = false) {
    document.body.classList.remove("sidebar-open");
    this.#element.inert = NARROW.matches;
    document.querySelector("main").inert = false;
    if (isByUser) this.#opener.focus();
  }

  #focus(id, kind) {
    this.#place.querySelector(`[data-id="${id}"] [data-kind="${kind}"]`)?.focus();
  }

  #item({ id, title }) {
    const isShown = id === this.#chat.conversation.id;
    const open = el("button", { type: "button", class: "open", "data-kind": "open", title,
      "aria-current": isShown ? "true" : undefined, onclick: () => {
        this.#chat.open(id);
        this.close();
      } });
    if (title) open.textContent = title;
    else say(open, "untitled");
    if (this.#chat.isRunning(id)) open.append(el("span", { class: "dot", role: "img", tLabel: "isAnswering" }));
    return el("li", { class: isShown ? "current" : "", "data-id": id }, open,
      iconButton("edit", "rename", () => this.#rename(id, title), { "data-kind": "rename" }),
      iconButton("remove", "removeConversation", () => this.#remove(id, title), { "data-kind": "remove" }));
  }

  #rename(id, title) {
    const item = this.#place.querySelector(`[data-id="${id}"]`);
    const field = el("input", { type: "text", tLabel: "newName", maxlength: 120 });
    field.value = title;
    const finish = isKept => {
      if (this.#editing !== id) return;
      this.#editing = null;
      if (isKept && field.value.trim() !== title) this.#chat.rename(id, field.value.trim());
      const hadFocus = document.activeElement === field || document.activeElement === document.body;
      this.show();
      if (hadFocus) this.#focus(id, "rename");
    };
    field.addEventListener("keydown", event => {
      if (isComposing(event)) return;
      if (event.key === "Enter") {
        event.preventDefault();  // else it presses the button, too, that gets the focus now
        finish(true);
      } else if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    field.addEventListener("blur", () => finish(true));
    this.#editing = id;
    item.replaceChildren(field);
    field.select();
    field.focus();
  }

  async #remove(id, title) {
    if (!await ask("removeQuestion", { title }, "remove")) return;
    this.#chat.remove(id);
    (this.#place.querySelector("button") ?? document.getElementById("new-chat")).focus();
  }
}
