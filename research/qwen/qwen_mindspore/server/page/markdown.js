// Markdown of a model to elements. What a model writes is not to be trusted: HTML in it is shown as the text that it
// is, images (which would fetch something from elsewhere) as links, and DOMPurify lets through what Markdown makes and
// nothing else. Code and formulas are filled in afterwards, from text.
/* global DOMPurify, katex */
import hljs from "./vendor/highlight.min.js";
import { Marked } from "./vendor/marked.esm.js";
import { copyFrom, el, iconButton } from "./dom.js";
import { MATH } from "./math.js";

const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};
const FORMULA = { throwOnError: false, strict: "ignore", trust: false, maxSize: 40, maxExpand: 500 };
const LONGEST_COLORED = 60_000;  // characters; more would hold the page up

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = text => text.replace(/[&<>"']/g, character => escapes[character]);

const renderer = {
  html({ text, block }) {
    if (/^<br\s*\/?>$/i.test(text.trim())) return "<br>";
    return block ? `<p>${escaped(text.trimEnd()).replace(/\n/g, "<br>")}</p>` : escaped(text);
  },
  image({ href, text }) {
    return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
  },
  heading({ tokens, depth }) {
    // The page's own headings are above those of an answer.
    const tag = `h${Math.min(depth + 2, 6)}`;
    return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
  },
  checkbox({ checked }) {
    return checked ? "☑ " : "☐ ";
  },
};

const markdown = new Marked({ gfm: true, breaks: false, async: false }, { renderer }, MATH);

/** The blocks of a text, in order; joined, their `raw` is the text. `.links`: what the text defines for "[x][y]". */
export function blocksOf(text) {
  return markdown.lexer(text);
}

/** Whether a block of code is still being written: its fence is not closed. */
export function isOpenCode(block) {
  if (block.type !== "code" || block.codeBlockStyle === "indented") return false;
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(block.raw)?.[1];
  if (!fence) return false;
  const last = block.raw.trimEnd().split("\n").slice(1).at(-1)?.trim() ?? "";
  return !(last.length >= fence.length && last === fence[0].repeat(last.length));
}

/** The elements of one block. */
export function elementsOf(block) {
  if (block.type === "space" || block.type === "def") return document.createDocumentFragment();
  const fragment = DOMPurify.sanitize(markdown.parser([block]), ALLOWED);
  fragment.querySelectorAll("pre > code").forEach(finishCode);
  fragment.querySelectorAll(".math").forEach(finishFormula);
  fragment.querySelectorAll("table").forEach(finishTable);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  return fragment;
}

/** A block of code as it is written: plain text that grows. Returns {element, text}: the second is a text node. */
export function openCode({ text, lang }) {
  const node = document.createTextNode(text);
  return { element: framed(el("pre", {}, el("code", {}, node)), wordOf(lang), () => node.data), text: node };
}

function wordOf(lang) {
  return lang?.trim().split(/\s/)[0] ?? "";
}

function finishCode(code) {
  const name = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const text = code.textContent;
  if (hljs.getLanguage(name) && text.length <= LONGEST_COLORED) {
    code.innerHTML = hljs.highlight(text, { language: name, ignoreIllegals: true }).value;  // which escapes the text
  }
  code.removeAttribute("class");
  const pre = code.parentElement;
  const place = document.createComment("");
  pre.replaceWith(place);
  place.replaceWith(framed(pre, name, () => text.replace(/\n$/, "")));
}

/** Code under a line with its language and a button that copies it. */
function framed(pre, name, text) {
  // Code that is wider than the page is scrolled, by keyboard too: so it takes the focus.
  pre.tabIndex = 0;
  const button = iconButton("copy", "copyCode", () => copyFrom(button, text()));
  return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", {}, name), button), pre);
}

function finishFormula(place) {
  const source = place.textContent;
  const isDisplay = place.classList.contains("display");
  try {
    katex.render(source, place, { ...FORMULA, displayMode: isDisplay });
  } catch {
    place.textContent = source;
  }
  if (isDisplay) place.tabIndex = 0;
}

function finishTable(table) {
  const place = document.createComment("");
  table.replaceWith(place);
  place.replaceWith(el("div", { class: "table", tabindex: 0 }, table));
}
