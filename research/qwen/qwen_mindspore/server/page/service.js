// What the page knows of the server: its models, whether it is ready, the key, and how a request is written.
import { sleep } from "./answering.js";
import { ApiError, getJson } from "./api.js";
import { toRequest } from "./conversation.js";
import { fitting, parametersOf } from "./parameters.js";
import { recall, remember } from "./store.js";
import { parseTools } from "./tools.js";

const KEY = "qwen-api-key", MODEL = "qwen-model", VALUES = "qwen-parameters";
const FIRST_WAIT = 2, LONGEST_WAIT = 15;  // seconds between two looks at a server that is not there

/** Events: "change" when the state has changed, "model" when another model, or more of it, is known. */
export class Service extends EventTarget {
  state = "connecting";  // "ready", "loading", "locked" (a key is needed), "unreachable"
  models = [];
  card = null;  // what the server says of the model
  #controller = null;

  get key() {
    return recall(KEY, "", "sessionStorage");  // gone with the tab: others may use the browser after it
  }

  set key(value) {
    remember(KEY, value, "sessionStorage");
    this.connect();
  }

  get model() {
    return this.card?.id ?? null;
  }

  /** Whether the model chats; a base model goes on with a text. */
  get isChat() {
    return this.card?.chat !== false;
  }

  get parameters() {
    return parametersOf(this.card);
  }

  /** The parameters that the user has set: {name: number}. */
  get values() {
    return fitting(this.parameters, recall(VALUES, {}));
  }

  set values(values) {
    remember(VALUES, values);
  }

  /** Find out which models there are; goes on trying until the server answers. */
  async connect() {
    this.#controller?.abort();
    const { signal } = this.#controller = new AbortController();
    let wait = FIRST_WAIT;
    for (;;) {
      let error;
      try {
        const { data } = await getJson("v1/models", { key: this.key, signal });
        this.models = data;
        await this.choose(recall(MODEL, null), signal);
        this.#become("ready");
        return;
      } catch (caught) {
        error = caught;
      }
      if (signal.aborted) return;
      this.#become(stateOf(error));
      if (this.state === "locked") return;  // until there is a key
      try {
        await sleep(1000 * (error.retryAfter ?? wait), signal);
      } catch {
        return;
      }
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  }

  /** Take the model with this id, or the first. */
  async choose(id, signal) {
    const card = this.models?.find(model => model.id === id) ?? this.models?.[0] ?? null;
    this.card = card;
    if (card) {
      remember(MODEL, card.id);
      try {  // a card of its own says more, where there is one
        const more = await getJson(`v1/models/${encodeURIComponent(card.id)}`, { key: this.key, signal });
        if (this.card === card) this.card = { ...card, ...more };
      } catch (error) {
        if (error.name === "AbortError") throw error;
      }
    }
    this.dispatchEvent(new Event("model"));
  }

  /** What a request's fate says of the server: null, or an ApiError. */
  note(error) {
    if (error === null) this.#become("ready");
    if (!(error instanceof ApiError)) return;
    const isLost = error.code === "unreachable";
    if (isLost || error.status === 401) this.#become(stateOf(error));
    if (isLost) this.connect();
  }

  /** The request that a conversation makes: {path, body, key}. Throws ApiError (code "tools") for bad tools. */
  requestOf({ system, tools, toolChoice, messages }) {
    const body = { ...(this.model && { model: this.model }), ...this.values };
    if (!this.isChat) {
      return { path: "v1/completions", key: this.key, body: { ...body, prompt: messages.at(-1).content } };
    }
    body.messages = toRequest({ system, messages });
    const parsed = toolsOf(tools);
    if (parsed.length) Object.assign(body, { tools: parsed, tool_choice: toolChoice });
    return { path: "v1/chat/completions", key: this.key, body };
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

function toolsOf(text) {
  try {
    return parseTools(text);
  } catch (error) {
    throw new ApiError(error.message, { code: "tools" });
  }
}

function stateOf(error) {
  if (error.status === 401 || error.status === 403) return "locked";
  if (error.isTemporary) return "loading";
  return "unreachable";
}
