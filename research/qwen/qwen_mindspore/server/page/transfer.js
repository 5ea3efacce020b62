// Conversations as files: {"messages": [{"role": ..., "content": ...}, ...]}, the form that the terminal's :save and
// :load have, and most chat programs read. Thoughts and calls are further keys, which the terminal passes over.
import { newConversation, retitle } from "./conversation.js";
import { t } from "./i18n.js";

/** {text, isWhole}: the file's text, and whether it holds all; a last question without an answer is left out, since
 * :load expects an answer to each. */
export function toFile({ system, messages }) {
  const end = messages.at(-1)?.role === "user" ? messages.length - 1 : messages.length;
  const written = messages.slice(0, end).map(message => {
    if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
    const { role, content, reasoning, calls } = message;
    return { role, content, ...(reasoning && { reasoning_content: reasoning }),
      ...(calls?.length && { tool_calls: calls.map(call => (
        { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } })) }) };
  });
  const all = system.trim() ? [{ role: "system", content: system }, ...written] : written;
  return { text: `${JSON.stringify({ messages: all }, null, 2)}\n`, isWhole: end === messages.length };
}

/** A name for the file that every system can have. */
export function fileName({ title }) {
  const name = title.replace(/[\\/:*?"<>|\x00-\x1f\s]+/g, " ").trim().replace(/^\.+/, "").slice(0, 60);
  return `${name || "conversation"}.json`;
}

/** The conversation that a file holds. Throws Error with one line that says what is wrong with it. */
export function fromFile(text) {
  let messages;
  try {
    ({ messages } = JSON.parse(text.replace(/^\ufeff/, "")));
  } catch { /* said below */ }
  if (!Array.isArray(messages)) throw new Error(t("importForm"));
  const conversation = newConversation();
  messages.forEach((message, at) => take(conversation, message, at + 1));
  if (!conversation.messages.length) throw new Error(t("importEmpty"));
  retitle(conversation);
  return conversation;
}

function take(conversation, message, number) {
  const bad = key => new Error(t(key, { number, found: JSON.stringify(message)?.slice(0, 60) ?? "" }));
  const { role } = message ?? {};
  const content = textOf(message?.content);
  const calls = (message?.tool_calls ?? []).map?.(callOf);
  if (!Array.isArray(calls) || calls.includes(null)) throw bad("importCall");
  if (content === null && !calls.length) throw bad("importMessage");
  const before = conversation.messages.at(-1);
  if (role === "system" || role === "developer") {
    if (number !== 1) throw bad("importSystem");
    conversation.system = content;
  } else if (role === "user") {
    conversation.messages.push({ role, content });
  } else if (role === "assistant" && before) {
    const reasoning = typeof message.reasoning_content === "string" ? message.reasoning_content : "";
    conversation.messages.push({ role, content: content ?? "", reasoning, calls, finish: "stop" });
  } else if (role === "tool" && (before?.role === "tool" || before?.calls?.length)) {
    conversation.messages.push({ role, callId: String(message.tool_call_id ?? ""), content });
  } else {
    throw bad("importRole");
  }
}

/** Text, or OpenAI's list of parts that are all text; else null. */
function textOf(content) {
  if (typeof content === "string") return content;
  const isParts = Array.isArray(content) && content.every(part => typeof part?.text === "string");
  return isParts ? content.map(part => part.text).join("") : null;
}

function callOf(call) {
  const { name, arguments: text } = call?.function ?? {};
  if (typeof name !== "string" || typeof text !== "string") return null;
  return { id: String(call.id ?? ""), name, arguments: text };
}
