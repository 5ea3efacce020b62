// Elements, icons and the words on them.
import { t } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  brand: "M12 3l7.8 4.5v9L12 21l-7.8-4.5v-9z M12 8.5v7 M8.9 10.3l6.2 3.5 M15.1 10.3l-6.2 3.5",
  menu: "M4 7h16 M4 12h16 M4 17h16",
  plus: "M12 5v14 M5 12h14",
  close: "M6 6l12 12 M18 6L6 18",
  send: "M12 19V5 M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9z M5 15H4V4h11v1",
  done: "M5 13l4 4L19 7",
  edit: "M4 20h4L19 9l-4-4L4 16z M13 7l4 4",
  remove: "M4 7h16 M9 7V4h6v3 M6 7l1 13h10l1-13 M10 11v5 M14 11v5",
  again: "M20 12a8 8 0 1 1-2.3-5.7 M20 3v5h-5",
  settings: "M4 8h9 M17 8h3 M4 16h3 M11 16h9 M15 6v4 M9 14v4",
  down: "M12 5v14 M6 13l6 6 6-6",
  tool: "M14.5 6.5a4 4 0 0 1 5-1.5l-3 3 .5 2 2 .5 3-3a4 4 0 0 1-5.4 4.9L9 20l-3-3 8.6-7.6a4 4 0 0 1-.1-2.9z",
  export: "M12 4v11 M8 11l4 4 4-4 M5 20h14",
  import: "M12 15V4 M8 8l4-4 4 4 M5 20h14",
  theme: "M12 4a8 8 0 1 0 8 8 6 6 0 0 1-8-8z",
  warning: "M12 4l9 16H3z M12 10v4 M12 17v.5",
};

/**
 * An element. `on...` are listeners, `t`, `tLabel` and `tPlaceholder` keys of words (see i18n.js) for its text, its
 * label and its placeholder, `tValues` what stands in them; anything else is an attribute.
 */
export function el(tag, properties = {}, ...children) {
  const { t: text, tLabel, tPlaceholder, tValues, ...others } = properties;
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(others)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  if (text) say(element, text, tValues);
  if (tLabel) label(element, tLabel, tValues);
  if (tPlaceholder) {
    element.dataset.tPlaceholder = tPlaceholder;
    element.placeholder = t(tPlaceholder);
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** Give an element words as its text; they follow the language. */
export function say(element, key, values) {
  element.dataset.t = key;
  if (values) element.dataset.tValues = JSON.stringify(values);
  else delete element.dataset.tValues;
  element.textContent = t(key, values);
}

/** Give an element words as its name, for those who hear it and as a tip; they follow the language. */
export function label(element, key, values) {
  element.dataset.tLabel = key;
  if (values) element.dataset.tValues = JSON.stringify(values);
  element.setAttribute("aria-label", t(key, values));
  if (element.tagName === "BUTTON") element.title = t(key, values);
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon alone; its name is heard, and seen as a tip. */
export function iconButton(name, tLabel, onclick, properties = {}) {
  return el("button", { type: "button", class: "icon-button", tLabel, onclick, ...properties }, icon(name));
}

/** Copy text, and say so on the button for a moment. */
export async function copyFrom(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyOldWay(text);  // a page by plain http from another machine has no clipboard
  }
  const before = button.dataset.tLabel;
  button.replaceChildren(icon("done"));
  label(button, "copied");
  setTimeout(() => {
    button.replaceChildren(icon("copy"));
    label(button, before === "copied" ? "copy" : before);
  }, 1500);
}

function copyOldWay(text) {
  const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

/** Whether Enter was pressed to finish a word of an input method (Chinese, Japanese, ...) and is not meant for us. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;  // Safari ends the composition before it sends the key
}
