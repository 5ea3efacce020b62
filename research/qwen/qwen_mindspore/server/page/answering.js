// One request and the answer that comes of it, told piece by piece.
import { ApiError, streamJson } from "./api.js";
import { isEmptyAnswer } from "./conversation.js";

const PATIENCE = 15 * 60;  // seconds that a model may take to load
const USUAL_WAIT = 5;  // seconds, where the server names none

/**
 * Fill an answer from a stream.
 *
 * While the server says that it is loading or full, waits as long as it asks for and tries again.
 *
 * @param answer what conversation.newAnswer gives; it grows, and gets `finish` and `stats`.
 * @param request {path, body, key, signal}
 * @param tell called with what happens: {phase: "sending" | "waiting" | "retrying" | "answering", ...}; with
 *   "waiting" come {queued} where the server tells it, with "retrying" {seconds, status}; "answering" comes with each
 *   piece.
 * Throws ApiError, or AbortError when the signal stops it; what came before stays in the answer.
 */
export async function fill(answer, request, tell) {
  const deadline = performance.now() + PATIENCE * 1000;
  for (;;) {
    try {
      await once(answer, request, tell);
      return;
    } catch (error) {
      const mayRetry = error instanceof ApiError && error.isTemporary && isEmptyAnswer(answer);
      if (!mayRetry || performance.now() > deadline) throw error;
      await countDown(error, request.signal, tell);
    }
  }
}

async function countDown({ retryAfter, status }, signal, tell) {
  for (let seconds = Math.max(1, Math.ceil(retryAfter ?? USUAL_WAIT)); seconds > 0; seconds -= 1) {
    tell({ phase: "retrying", seconds, status });
    await sleep(1000, signal);
  }
}

export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

async function once(answer, { path, body, key, signal }, tell) {
  const start = performance.now();
  const times = { pieces: 0, first: null, last: null };
  tell({ phase: "sending" });
  const onOpen = () => tell({ phase: "waiting" });
  try {
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    for await (const { comment, data } of streamJson(path, streamed, { key, signal, onOpen })) {
      if (comment !== undefined) {
        const queued = /^queued:?\s*(\d+)/.exec(comment)?.[1];
        if (times.first === null) tell({ phase: "waiting", queued: queued === undefined ? undefined : Number(queued) });
      } else if (take(answer, data)) {
        times.pieces += 1;
        times.last = performance.now();
        times.first ??= times.last;
        tell({ phase: "answering" });
      }
    }
    if (!answer.finish) throw new ApiError("", { code: "broken" });
  } finally {
    if (times.first !== null) answer.stats = statsOf(answer, times, start);
    delete answer.usage;
  }
}

/** Take one event in; whether the answer has grown. */
function take(answer, data) {
  if (data.usage) answer.usage = data.usage;
  const choice = data.choices?.[0];
  if (!choice) return false;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  const text = content ?? choice.text ?? "";
  answer.content += text;
  answer.reasoning += reasoning ?? "";
  calls?.forEach(call => takeCall(answer.calls, call));
  return Boolean(text || reasoning || calls?.length);
}

/** A call comes in pieces: its name first, its arguments after it. */
function takeCall(calls, { index = 0, id, function: { name, arguments: text } = {} }) {
  calls[index] ??= { id: id ?? `call_${index}`, name: "", arguments: "" };
  calls[index].name += name ?? "";
  calls[index].arguments += text ?? "";
}

function statsOf({ usage }, { pieces, first, last }, start) {
  return {
    // Without the server's count, as after a stop, pieces stand for tokens.
    isExact: Boolean(usage),
    tokens: usage?.completion_tokens ?? pieces,
    promptTokens: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
    first: (first - start) / 1000,
    seconds: (last - first) / 1000,
  };
}
