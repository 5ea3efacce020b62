// The server's interface, which is OpenAI's: JSON, streams of events, and errors.

/** What the server, or the way to it, has to say against a request. `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }

  /** Whether the same request may succeed later: the queue is full, or the model is loading. */
  get isTemporary() {
    return this.status === 429 || this.status === 503;
  }
}

function headersOf(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, key, options) {
  let response;
  try {
    // Relative to the page, so that a proxy may put both below a folder.
    const url = new URL(path, document.baseURI);
    response = await fetch(url, { ...options, redirect: "error", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(error.message, { code: "unreachable" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const seconds = secondsOf(response.headers.get("Retry-After"));
  let message = "", error = {};
  try {
    const text = await response.text();
    message = text.slice(0, 500);
    error = JSON.parse(text).error ?? {};
    message = (typeof error === "string" ? error : error.message) ?? message;
  } catch { /* then the text as it is, or the status alone */ }
  return new ApiError(message || response.statusText, {
    status: response.status, param: error.param ?? null, code: error.code ?? null, retryAfter: seconds });
}

/** Retry-After is a number of seconds or a date. */
function secondsOf(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

export async function getJson(path, { key, signal } = {}) {
  const response = await request(path, key, { headers: headersOf(key), signal });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`${path}: expected JSON`, { status: response.status });
  }
}

/**
 * POST a request with `stream: true` and give what comes: {data} for each event, {comment} for each comment, which says
 * that the server still works on it. Ends with the stream's [DONE].
 *
 * Throws ApiError: refused; an error event; or a connection that broke before the end (code "broken").
 */
export async function* streamJson(path, body, { key, signal, onOpen } = {}) {
  const response = await request(path, key, {
    method: "POST", headers: { "Content-Type": "application/json", ...headersOf(key) },
    body: JSON.stringify(body), signal });
  onOpen?.();
  for await (const event of eventsOf(response.body)) {
    if (event.comment !== undefined) yield event;
    else if (event.data.trim() === "[DONE]") return;
    else yield { data: parsed(event.data) };
  }
  throw new ApiError("", { code: "broken" });
}

function parsed(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ApiError(`expected JSON in the stream, found ${text.slice(0, 80)}`, { code: "broken" });
  }
  if (data.error) {
    throw new ApiError(data.error.message ?? String(data.error), { code: data.error.code, param: data.error.param });
  }
  return data;
}

/** Events of a stream (text/event-stream), however its bytes are cut. */
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "", data = [];
  try {
    for (;;) {
      const { done, value } = await read(reader);
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A carriage return at the end may be half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
        else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield { data: data.join("\n") };
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});  // whoever stops reading frees the connection, and with it the engine
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(error.message, { code: "broken" });
  }
}
