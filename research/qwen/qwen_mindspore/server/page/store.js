// Conversations in the browser's localStorage, each under a key of its own, so that two tabs never write over each
// other's. A conversation carries the number of its revision: whoever finds another one in the store than the one that
// it began with keeps what it has as a new conversation.

const PREFIX = "qwen-chat:";

/** A short name that is free. crypto.randomUUID needs https, and this page is often plain http. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join("");
}

/** Something small that is remembered, or `fallback`. */
export function recall(key, fallback, storage = "localStorage") {
  try {
    return JSON.parse(globalThis[storage].getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Remember something small; false where the browser does not. */
export function remember(key, value, storage = "localStorage") {
  try {
    globalThis[storage].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/**
 * Events: "change" ({id, isRemoved}) when another tab wrote; "forked" when what is saved here goes beside what another
 * tab wrote; "full" when the browser has no room.
 */
export class Store extends EventTarget {
  #heads = new Map();  // id -> {id, title, updated}: what a list needs, so that it need not parse all the rest
  #unsaved = new Map();  // id -> conversation that the browser did not take

  constructor() {
    super();
    try {
      for (const key of Object.keys(localStorage)) {
        if (key.startsWith(PREFIX)) this.#note(this.#read(key.slice(PREFIX.length)));
      }
    } catch { /* no storage: conversations live as long as the page */ }
    addEventListener("storage", event => this.#heard(event));
  }

  /** {id, title, updated} of each conversation, the latest first. */
  get list() {
    return [...this.#heads.values()].sort((one, other) => other.updated - one.updated);
  }

  load(id) {
    return this.#unsaved.get(id) ?? this.#read(id);
  }

  /**
   * Keep a conversation. Where another tab has changed or removed it meanwhile, it gets a new id and is kept beside
   * the other. Returns whether the browser took it.
   */
  save(conversation) {
    const stored = this.#read(conversation.id);
    const isOurs = stored ? stored.revision === conversation.revision : conversation.revision === 0;
    if (!isOurs) {
      if (stored) this.#note(stored);
      else this.#heads.delete(conversation.id);
      conversation.id = newId();
      conversation.revision = 0;
      this.dispatchEvent(new Event("forked"));
    }
    return this.#write(conversation);
  }

  remove(id) {
    this.#heads.delete(id);
    this.#unsaved.delete(id);
    try {
      localStorage.removeItem(PREFIX + id);
    } catch { /* nothing was there */ }
    this.#unsaved.forEach(conversation => this.#write(conversation));  // there may be room now
  }

  #write(conversation) {
    conversation.updated = Date.now();
    this.#note(conversation);
    try {
      const text = JSON.stringify({ ...conversation, revision: conversation.revision + 1 });
      localStorage.setItem(PREFIX + conversation.id, text);
    } catch {
      const isNews = !this.#unsaved.has(conversation.id);
      this.#unsaved.set(conversation.id, conversation);
      if (isNews) this.dispatchEvent(new Event("full"));
      return false;
    }
    conversation.revision += 1;
    this.#unsaved.delete(conversation.id);
    return true;
  }

  #read(id) {
    try {
      const value = JSON.parse(localStorage.getItem(PREFIX + id));
      return Array.isArray(value?.messages) ? value : null;
    } catch {
      return null;
    }
  }

  #note(conversation) {
    if (!conversation) return;
    const { id, title, updated } = conversation;
    this.#heads.set(id, { id, title, updated });
  }

  #heard({ key, newValue }) {
    if (key !== null && !key.startsWith(PREFIX)) return;
    if (key === null) {  // everything was cleared
      for (const id of [...this.#heads.keys()]) this.#tell(id, true);
      return;
    }
    const id = key.slice(PREFIX.length);
    if (newValue !== null) this.#note(this.#read(id));
    this.#tell(id, newValue === null);
  }

  #tell(id, isRemoved) {
    if (isRemoved) this.#heads.delete(id);
    this.dispatchEvent(new CustomEvent("change", { detail: { id, isRemoved } }));
  }
}
