// The settings: system prompt, parameters, tools, key, language and theme.
/* global theme */
import { el, iconButton, say } from "./dom.js";
import { getLanguage, setLanguage, t } from "./i18n.js";
import { valueOf } from "./parameters.js";
import { EXAMPLE, parseTools } from "./tools.js";

export class Panel {
  #chat;
  #service;
  #dialog = document.getElementById("panel");
  #system = document.getElementById("system");
  #tools = document.getElementById("tools");
  #choice = document.getElementById("tool-choice");
  #key = document.getElementById("api-key");

  constructor(chat, service) {
    this.#chat = chat;
    this.#service = service;
    document.getElementById("close-panel").addEventListener("click", () => this.#dialog.close());
    // A click beside the panel closes it; one on what is in it has another target.
    this.#dialog.addEventListener("click", event => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
    this.#dialog.addEventListener("close", () => this.#keep());
    this.#tools.addEventListener("input", () => this.#checkTools());
    document.getElementById("tools-example").addEventListener("click", () => {
      this.#tools.value = EXAMPLE;
      this.#checkTools();
    });
    document.getElementById("reset-parameters").addEventListener("click", () => {
      this.#service.values = {};
      this.#showParameters();
    });
    this.#bindAppearance();
    service.addEventListener("model", () => this.#showParameters());
    this.#showParameters();
  }

  open(focused = null) {
    const { system, tools, toolChoice } = this.#chat.conversation;
    this.#system.value = system;
    this.#tools.value = tools;
    this.#choice.value = toolChoice;
    this.#key.value = this.#service.key;
    this.#checkTools();
    document.getElementById("chat-settings").hidden = !this.#service.isChat;
    this.#dialog.showModal();
    if (focused) document.getElementById(focused).focus();
  }

  #keep() {
    const { conversation } = this.#chat;
    const changes = { system: this.#system.value, tools: this.#tools.value, toolChoice: this.#choice.value };
    if (Object.entries(changes).some(([name, value]) => conversation[name] !== value)) {
      Object.assign(conversation, changes);
      this.#chat.save();
    }
    if (this.#key.value !== this.#service.key) this.#service.key = this.#key.value;
  }

  #checkTools() {
    const place = document.getElementById("tools-note");
    let isBad = false;
    try {
      const names = parseTools(this.#tools.value).map(tool => tool.function.name);
      say(place, names.length ? "toolsFound" : "toolsNone", { names: names.join(", ") });
    } catch (error) {
      isBad = true;
      delete place.dataset.t;
      place.textContent = error.message;
    }
    place.classList.toggle("bad", isBad);
    this.#tools.setAttribute("aria-invalid", isBad);
  }

  #showParameters() {
    const rows = this.#service.parameters.map(parameter => this.#row(parameter));
    document.getElementById("parameters").replaceChildren(...rows);
  }

  /** A parameter: a field, and a slider where the range is short. An empty field is the server's default. */
  #row(parameter) {
    const { name, low, high, step, initial, isOpen } = parameter;
    const value = this.#service.values[name];
    const id = `parameter-${name}`;
    const field = el("input", { id, type: "text", inputmode: "decimal", autocomplete: "off",
      "aria-describedby": `${id}-note`, placeholder: initial ?? "" });
    field.value = value ?? "";
    if (initial === undefined) field.dataset.tPlaceholder = "byServer";
    if (initial === undefined) field.placeholder = t("byServer");
    const slider = isOpen ? null : el("input", { type: "range", min: low, max: high, step, tabindex: -1,
      "aria-hidden": "true" });
    const note = el("p", { class: "hint", id: `${id}-note` });
    const showSlider = () => {
      if (slider) slider.value = this.#service.values[name] ?? initial ?? (low + high) / 2;
      slider?.classList.toggle("unset", this.#service.values[name] === undefined);
    };
    const range = { low: shown(low), high: shown(high) };
    const explain = isBad => {
      if (isBad) say(note, parameter.isWhole ? "badWhole" : "badNumber", range);
      else if (isOpen) say(note, `${name}Hint`, range);
      else say(note, `${name}Hint`);
      note.classList.toggle("bad", isBad);
      field.setAttribute("aria-invalid", isBad);
    };
    field.addEventListener("input", () => {
      const typed = valueOf(parameter, field.value);
      explain(typed === undefined);
      if (typed === undefined) return;  // what it was before holds
      this.#set(name, typed);
      showSlider();
    });
    slider?.addEventListener("input", () => {
      field.value = slider.value;
      explain(false);
      this.#set(name, Number(slider.value));
      showSlider();
    });
    showSlider();
    explain(false);
    return el("div", { class: "parameter" }, el("label", { for: id, t: name }), slider, field,
      iconButton("again", "toDefault", () => {
        field.value = "";
        field.dispatchEvent(new Event("input"));
        field.focus();
      }, { tabindex: -1 }), note);
  }

  #set(name, value) {
    const values = { ...this.#service.values };
    if (value === null) delete values[name];
    else values[name] = value;
    this.#service.values = values;
  }

  #bindAppearance() {
    const language = document.getElementById("language");
    const colors = document.getElementById("theme");
    language.value = getLanguage();
    colors.value = theme.choice;
    language.addEventListener("change", () => {
      setLanguage(language.value);
      this.#checkTools();  // whose note may be an error, which has no key
    });
    colors.addEventListener("change", () => { theme.choice = colors.value; });
  }
}

function shown(number) {
  if (number === Number.MAX_SAFE_INTEGER) return "2⁵³ − 1";
  if (number === Number.MIN_SAFE_INTEGER) return "−2⁵³ + 1";
  return number === 2 ** 31 ? "2³¹" : String(number).replace("-", "−");
}
