// What can be done with conversations: ask, stop, answer anew, edit, delete. Knows nothing of the page; it tells what
// has changed by events.
import { fill } from "./answering.js";
import { ApiError } from "./api.js";
import * as conversations from "./conversation.js";
import { recall, remember } from "./store.js";

const SHOWN = "qwen-shown";  // the key of what a tab shows
const SAVED_EACH = 2000;  // milliseconds, while an answer grows

/**
 * Events:
 *   "conversation": another conversation is shown, or this one has changed as a whole;
 *   "growth" ({answer}): the answer that is being written has grown;
 *   "phase" (run): the state of a request has changed;
 *   "end" ({conversation, answer, hasBegun, error, isStopped}): a request is over;
 *   "list": the list of conversations has changed.
 */
export class Chat extends EventTarget {
  #runs = new Map();  // conversation -> its run: {controller, answer, phase, replaced}
  #store;
  #service;

  /** `service`: {path, key, bodyOf(conversation)}, see service.js. */
  constructor(store, service) {
    super();
    this.#store = store;
    this.#service = service;
    this.failure = null;  // {error}: why the last question of the shown conversation has no answer
    this.conversation = conversations.newConversation();
    store.addEventListener("change", event => this.#heard(event.detail));
    addEventListener("pagehide", () => this.#runs.forEach((_, conversation) => store.save(conversation)));
  }

  /** The run of the conversation that is shown, or undefined. */
  get run() {
    return this.#runs.get(this.conversation);
  }

  isRunning(id) {
    return [...this.#runs.keys()].some(conversation => conversation.id === id);
  }

  /** Show a conversation; an answer that is being written elsewhere goes on. */
  show(conversation) {
    this.conversation = conversation;
    this.failure = null;
    remember(SHOWN, conversation.id, "sessionStorage");
    this.#tell("conversation");
    this.#tell("list");
  }

  /** Show what this tab showed before it was loaded anew. */
  reopen() {
    this.open(recall(SHOWN, null, "sessionStorage"));
  }

  open(id) {
    const running = [...this.#runs.keys()].find(conversation => conversation.id === id);
    const conversation = running ?? this.#store.load(id);
    if (conversation) this.show(conversation);
  }

  begin() {
    const { system, tools, toolChoice } = this.conversation;
    this.show(conversations.newConversation({ system, tools, toolChoice }));
  }

  remove(id) {
    for (const [conversation, run] of this.#runs) {
      if (conversation.id === id) {
        run.isForgotten = true;
        run.controller.abort();
      }
    }
    this.#store.remove(id);
    if (this.conversation.id === id) this.begin();
    else this.#tell("list");
  }

  rename(id, title) {
    const conversation = id === this.conversation.id ? this.conversation : this.#store.load(id);
    Object.assign(conversation, { title, isNamed: Boolean(title) });
    conversations.retitle(conversation);
    this.save(conversation);
  }

  /** Keep a conversation, once there is something in it. */
  save(conversation = this.conversation) {
    if (conversation.messages.length) this.#store.save(conversation);
    remember(SHOWN, this.conversation.id, "sessionStorage");
    this.#tell("list");
  }

  ask(text) {
    if (this.run || conversations.openCalls(this.conversation.messages).length) return;
    this.#change(messages => messages.push({ role: "user", content: text }));
    this.answer();
  }

  /** Ask another question instead of one that was asked; what followed it is gone. */
  edit(question, text) {
    const at = this.conversation.messages.indexOf(question);
    if (this.run || at < 0) return;
    this.#change(messages => messages.splice(at, messages.length, { role: "user", content: text }));
    this.answer();
  }

  /** Delete a question and all that answers it. */
  removeTurn(question) {
    const at = this.conversation.messages.indexOf(question);
    if (this.run || at < 0) return;
    this.#change(messages => messages.splice(at, conversations.endOfTurn(messages, at) - at));
  }

  /** Give a call its result; with the last one, the model goes on. */
  giveResult(callId, content) {
    if (this.run) return;
    this.#change(messages => messages.push({ role: "tool", callId, content }));
    if (conversations.wantsAnswer(this.conversation.messages)) this.answer();
  }

  /** Answer once more; the answer that there was comes back if there is no new one. */
  regenerate() {
    const { messages } = this.conversation;
    const at = messages.findLastIndex(({ role }) => role === "assistant");
    if (this.run || at < 0) return;
    const replaced = messages.splice(at);
    this.answer(replaced);
  }

  stop() {
    this.run?.controller.abort();
  }

  /** Answer what was asked last. */
  async answer(replaced = []) {
    const { conversation } = this;
    const answer = conversations.newAnswer();
    const run = { controller: new AbortController(), answer, phase: { phase: "sending" }, replaced, savedAt: 0 };
    let error = null;
    try {
      // The request holds the messages as they are before the answer is among them.
      const request = { ...this.#service.requestOf(conversation), signal: run.controller.signal };
      conversation.messages.push(answer);
      this.failure = null;
      this.#runs.set(conversation, run);
      this.#tell("conversation");
      await fill(answer, request, phase => this.#progress(conversation, run, phase));
    } catch (caught) {
      error = caught;
    }
    this.#finish(conversation, run, error);
  }

  #progress(conversation, run, phase) {
    const isNew = phase.phase !== run.phase.phase || phase.phase !== "answering";
    run.phase = phase;
    const isShown = conversation === this.conversation;
    if (isNew && isShown) this.#tell("phase", run);
    if (phase.phase !== "answering") return;
    if (isShown) this.#tell("growth", run);
    if (performance.now() - run.savedAt > SAVED_EACH) {
      run.savedAt = performance.now();
      this.save(conversation);
    }
  }

  #finish(conversation, run, error) {
    const { answer, replaced } = run;
    const isStopped = error?.name === "AbortError";
    this.#runs.delete(conversation);
    if (error && conversations.isEmptyAnswer(answer)) {
      const { messages } = conversation;
      if (messages.at(-1) === answer) messages.pop();
      messages.push(...replaced);
    }
    if (error) answer.finish = isStopped ? "stopped" : "error";
    if (error && !isStopped) {
      if (!(error instanceof ApiError)) console.error(error);  // a fault of ours
      answer.error = { message: error.message, status: error.status, code: error.code, param: error.param };
      if (conversation === this.conversation) this.failure = conversations.isEmptyAnswer(answer) ? answer.error : null;
    }
    if (error) answer.calls = [];  // one that was cut off can't be answered
    if (run.isForgotten) return;
    this.save(conversation);
    if (conversation === this.conversation) this.#tell("conversation");
    const hasBegun = Boolean(answer.stats);
    this.#tell("end", { conversation, answer, hasBegun, error: isStopped ? null : error, isStopped });
  }

  #change(work) {
    work(this.conversation.messages);
    this.failure = null;
    conversations.retitle(this.conversation);
    this.save();
    this.#tell("conversation");
  }

  /** Another tab has changed a conversation: show it as it is now, unless an answer is being written here. */
  #heard({ id, isRemoved }) {
    this.#tell("list");
    if (id !== this.conversation.id || this.run) return;
    if (isRemoved) this.begin();
    else this.open(id);
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
