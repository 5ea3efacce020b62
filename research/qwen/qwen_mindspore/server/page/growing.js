// A text that grows, shown as Markdown: only its last blocks are made anew, so that a long answer costs no more a token
// than a short one.
import { blocksOf, elementsOf, isOpenCode, openCode } from "./markdown.js";

// A block can change as long as it, or the one behind it, may go on: "2" behind a list is a paragraph until it becomes
// "2. more", which is the list's.
const UNSETTLED = 2;

export class GrowingMarkdown {
  #shown = [];  // {raw, isOpen, holder, text}: what is on the page, one a block
  #settled = 0;  // so many of them stay
  #length = 0;  // and so many characters are theirs
  #whole = null;  // the text, once it is done
  #root;

  constructor(root) {
    this.#root = root;
  }

  /** Show a text that begins with the one shown before; `isDone`: it will not grow any more. */
  show(text, isDone) {
    const source = text.replace(/\r\n?/g, "\n");
    if (isDone && this.#whole === source) return;
    this.#whole = isDone ? source : null;
    if (isDone) {  // all at once, as Markdown has it: references may be defined at the end
      const blocks = blocksOf(source);
      const hasLinks = Object.keys(blocks.links ?? {}).length > 0;
      this.#replace(0, blocks, isDone, hasLinks);
      return;
    }
    const rest = source.slice(this.#length);
    const blocks = blocksOf(rest);
    this.#replace(this.#settled, blocks, isDone, false);
    this.#settle(rest, blocks);
  }

  #replace(from, blocks, isDone, isAnew) {
    blocks.forEach((block, at) => {
      const isOpen = !isDone && at === blocks.length - 1 && isOpenCode(block);
      const shown = this.#shown[from + at];
      if (!isAnew && shown?.raw === block.raw && shown.isOpen === isOpen) return;
      if (isOpen && shown?.isOpen && shown.lang === block.lang && block.text.startsWith(shown.text.data)) {
        shown.text.appendData(block.text.slice(shown.text.length));
        shown.raw = block.raw;
        return;
      }
      const made = this.#make(block, isOpen);
      if (shown) shown.holder.replaceWith(made.holder);
      else this.#root.append(made.holder);
      this.#shown[from + at] = made;
    });
    for (const { holder } of this.#shown.splice(from + blocks.length)) holder.remove();
  }

  #make(block, isOpen) {
    const holder = document.createElement("div");
    holder.className = "block";
    const made = { raw: block.raw, lang: block.lang, isOpen, holder };
    if (isOpen) {
      const { element, text } = openCode(block);
      holder.append(element);
      made.text = text;
    } else {
      holder.append(elementsOf(block));
    }
    return made;
  }

  #settle(rest, blocks) {
    let count = blocks.length, open = UNSETTLED;
    while (count > 0 && open > 0) {
      count -= 1;
      if (blocks[count].type !== "space") open -= 1;
    }
    const raw = blocks.slice(0, count).map(block => block.raw).join("");
    if (count === 0 || !rest.startsWith(raw)) return;
    this.#settled += count;
    this.#length += raw.length;
  }
}

/** Calls a function at most once a frame, and so seldom that it takes no more than a quarter of the time. */
export class Pace {
  #next = 0;
  #isWaiting = false;
  #work;

  constructor(work) {
    this.#work = work;
  }

  request() {
    if (this.#isWaiting) return;
    this.#isWaiting = true;
    const wait = this.#next - performance.now();
    if (wait > 16) setTimeout(() => requestAnimationFrame(() => this.#run()), wait - 16);
    else requestAnimationFrame(() => this.#run());
  }

  #run() {
    this.#isWaiting = false;
    const start = performance.now();
    this.#work();
    const now = performance.now();
    this.#next = now + 3 * (now - start);
  }
}
