// The language of the page: Chinese or English. Elements carry the keys of their words, so that a switch changes them
// where they are, also in the middle of an answer.
import { WORDS } from "./words.js";

const KEY = "qwen-language";
let language = remembered() ?? (navigator.language?.toLowerCase().startsWith("zh") ? "zh" : "en");

function remembered() {
  try {
    const value = localStorage.getItem(KEY);
    return value in WORDS ? value : null;
  } catch {
    return null;
  }
}

export const LANGUAGES = Object.keys(WORDS);

export function getLanguage() {
  return language;
}

/** The words of a key, with {name} replaced by values. */
export function t(key, values = {}) {
  const words = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function setLanguage(code) {
  language = code;
  try {
    localStorage.setItem(KEY, code);
  } catch { /* then it holds for this visit */ }
  translate();
}

/** Put the words of the language on every element that names some. */
export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-t], [data-t-label], [data-t-placeholder]")) {
    const { t: text, tLabel, tPlaceholder, tValues } = element.dataset;
    const values = tValues ? JSON.parse(tValues) : {};
    if (text) element.textContent = t(text, values);
    if (tLabel) {
      element.setAttribute("aria-label", t(tLabel, values));
      if (element.tagName === "BUTTON") element.title = t(tLabel, values);
    }
    if (tPlaceholder) element.placeholder = t(tPlaceholder, values);
  }
}
