// A conversation: {id, revision, updated, title, isNamed, system, tools, toolChoice, messages}. Its messages are
// {role: "user", content}; {role: "assistant", content, reasoning, calls: [{id, name, arguments}], finish, error,
// stats}; {role: "tool", callId, content}. Contents are the raw text, never what was made of it for the page.
import { newId } from "./store.js";

export function newConversation({ system = "", tools = "", toolChoice = "auto" } = {}) {
  return { id: newId(), revision: 0, updated: Date.now(), title: "", isNamed: false, system, tools, toolChoice,
    messages: [] };
}

export function newAnswer() {
  return { role: "assistant", content: "", reasoning: "", calls: [] };
}

export function isEmptyAnswer({ content, reasoning, calls }) {
  return !content && !reasoning && !calls.length;
}

/** Name a conversation by its first question, unless its owner has named it. */
export function retitle(conversation) {
  if (conversation.isNamed) return;
  const first = conversation.messages.find(({ role }) => role === "user")?.content ?? "";
  const line = first.trim().split("\n")[0];
  conversation.title = [...line].slice(0, 60).join("");
}

/** Where the turn ends that begins with the question at `start`: the number of the next question. */
export function endOfTurn(messages, start) {
  const next = messages.findIndex(({ role }, at) => at > start && role === "user");
  return next < 0 ? messages.length : next;
}

/** The last answer's calls that have no result yet. */
export function openCalls(messages) {
  const at = messages.findLastIndex(({ role }) => role === "assistant");
  if (at < 0 || messages.slice(at).some(({ role }) => role === "user")) return [];
  const answered = new Set(messages.slice(at + 1).map(({ callId }) => callId));
  return messages[at].calls.filter(({ id }) => !answered.has(id));
}

/** The result of a call, a message of role "tool" behind the answer at `at`; or undefined. */
export function resultOf(messages, at, callId) {
  for (const message of messages.slice(at + 1)) {
    if (message.role !== "tool") return undefined;
    if (message.callId === callId) return message;
  }
  return undefined;
}

/** Whether an answer is what is missing: the last message is a question or a result, and no call is open. */
export function wantsAnswer(messages) {
  const last = messages.at(-1);
  return Boolean(last) && last.role !== "assistant" && !openCalls(messages).length;
}

/** The messages as the server takes them. */
export function toRequest({ system, messages }) {
  const sent = messages.map(message => {
    if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
    if (message.role === "assistant" && message.calls.length) {
      // Of a call, the thought is part of what the model wrote before it (ReAct), and it goes on from there.
      return { role: "assistant", content: message.content || message.reasoning,
        tool_calls: message.calls.map(({ id, name, arguments: text }) => (
          { id, type: "function", function: { name, arguments: text } })) };
    }
    return { role: message.role, content: message.content };
  });
  return system.trim() ? [{ role: "system", content: system }, ...sent] : sent;
}
