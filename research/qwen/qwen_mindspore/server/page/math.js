// Mathematics in Markdown: an extension of marked that knows $...$, $$...$$, \(...\) and \[...\].

// A formula is at most so long, lest each of many that never end is looked for through all the text.
const BLOCK = [
  /^ {0,3}\$\$((?:\\[^]|[^\\$]){1,4000}?)\$\$[ \t]*(?:\n|$)/,
  /^ {0,3}\\\[((?:[^\\\n]|\\[^\]]|\n(?![ \t]*\n)){1,4000}?)\\\][ \t]*(?:\n|$)/,
];

// A dollar is often a price, so between single ones, as pandoc has it, no space touches a dollar and no digit or letter
// follows ("$5 and $6", "$5-$6", "$HOME/bin:$PATH" stay text); neither code nor the end of a line is crossed. What
// begins with a number and goes on in words without any sign of mathematics is a price, too ("$5 or 6$").
const DOLLAR = /^\$(?![\s$])((?:\\[^\n]|[^\\$`\n]){1,4000}?)(?<![\s\\])\$(?![\w$])/;
const PRICE = /^\d[^\s\\^_=+*<>{}]*\s[^\\^_=+*<>{}]*$/;
const INLINE = [
  { pattern: /^\$\$((?:\\[^]|[^\\$]){1,4000}?)\$\$/, display: true },
  { pattern: /^\\\[((?:[^\\]|\\[^\]]){1,4000}?)\\\]/, display: true },
  { pattern: /^\\\(((?:[^\\]|\\[^)]){1,4000}?)\\\)/, display: false },
  { pattern: DOLLAR, display: false },
];
const STARTS_BLOCK = /(?:^|\n) {0,3}(?:\$\$|\\\[)/;
const STARTS_INLINE = /(?<![\w$\\])\$(?=\S)|\\[[(]/;

function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** KaTeX comes later, see markdown.js: until then the formula is text in a place of its own. */
function renderer({ text, display }) {
  return display ? `<span class="math display">${escaped(text)}</span>` : `<span class="math">${escaped(text)}</span>`;
}

const block = {
  name: "mathBlock",
  level: "block",
  start(source) {
    return STARTS_BLOCK.exec(source)?.index;
  },
  tokenizer(source) {
    for (const pattern of BLOCK) {
      const found = pattern.exec(source);
      if (found) return { type: "mathBlock", raw: found[0], text: found[1].trim(), display: true };
    }
    return undefined;
  },
  renderer: token => `<p>${renderer(token)}</p>`,
};

const inline = {
  name: "math",
  level: "inline",
  start(source) {
    // Asked at every word of all that follows it: the quick look first.
    return /[$\\]/.test(source) ? STARTS_INLINE.exec(source)?.index : undefined;
  },
  tokenizer(source) {
    for (const { pattern, display } of INLINE) {
      const found = pattern.exec(source);
      const isPrice = found && pattern === DOLLAR && PRICE.test(found[1]);
      if (found && !isPrice) return { type: "math", raw: found[0], text: found[1].trim(), display };
    }
    return undefined;
  },
  renderer,
};

export const MATH = { extensions: [block, inline] };
