"""POST /v1/chat/completions: the next message of a conversation, whole or as it grows, with or without tools."""
import json
import uuid

from fastapi import APIRouter, Request

from qwen_mindspore.server.choices import Job
from qwen_mindspore.server.errors import invalid
from qwen_mindspore.server.fields import choices_of, settings_of
from qwen_mindspore.server.prompts import chat_prompt, check_room, grammars_of, in_thread, stop_words_of
from qwen_mindspore.server.protocol import ChatRequest
from qwen_mindspore.server.service import service_of
from qwen_mindspore.server.streams import EventStream, dumps, event_of, whole
from qwen_mindspore.text.react import Event, ReactStream, parse_response

__all__ = ["prompt_of_body", "router"]

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
@router.post("/chat/completions", response_model=None, include_in_schema=False)
async def create_chat_completion(request: Request, body: ChatRequest):
    """The next message of a conversation; with `stream` as server-sent events."""
    service = service_of(request)
    service.admit(0)  # who can't come in need not wait for a prompt to be written
    prompt = await prompt_of_body(service, body)
    check_room(service, prompt.ids, "messages")
    n = choices_of(body, service)
    grammars = await grammars_of(service, n, body.response_format, prompt)
    settings = settings_of(body, service, stop_words=stop_words_of(prompt, grammars[0] is not None),
                           logprobs=_logprobs(body, service))
    service.admit(len(prompt.ids) * n, n)
    job = Job(service, "chat", body, "chatcmpl")
    try:
        job.add(prompt.ids, settings, grammars, strip=False if prompt.tools or prompt.is_open else None)
    except BaseException:
        job.close()
        raise
    shapes = [_Shape(prompt, service.thought == "content") for _ in job.choices]
    if body.stream:
        return EventStream(job, _Writer(job, prompt, shapes), service.limits.ping_seconds)
    return await whole(request, job, lambda: _response(job, prompt, shapes))


async def prompt_of_body(service, body):
    """The ChatPrompt of a ChatRequest; ApiError (400) for what is none."""
    size = sum(len(str(message.get("content"))) for message in body.messages)
    return await in_thread(size, chat_prompt, service, body.messages, body.tools, body.tool_choice, body.functions,
                           body.function_call, body.add_generation_prompt, body.continue_final_message)


def _logprobs(body, service):
    """How many likely tokens to tell with each; None: nothing."""
    most = service.limits.max_logprobs
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= most:
        raise invalid(f"top_logprobs: expected an integer from 0 to {most}, found {body.top_logprobs}", "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs: expected logprobs to be true with it", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


class _Shape:
    """
    What a client gets of one answer: a message's parts, and why it ended.

    Args:
        prompt (ChatPrompt): The question.
        is_plain (bool): Thoughts are content where a call follows, and left out where an answer does, as in Qwen's
            server; otherwise they are told as such, at once.
    """

    def __init__(self, prompt, is_plain):
        self.is_older, self._is_plain = prompt.is_older, is_plain
        self._stream = ReactStream(prompt.is_open) if prompt.tools else None
        self._thoughts = []
        self.id, self.is_call = f"call_{uuid.uuid4().hex[:24]}", False

    def put(self, text, is_over):
        """list[Event], of the kinds "thought", "content", "call" and "arguments", for the next piece of text."""
        if self._stream is None:
            return [Event("content", text)] if text else []
        events = self._stream.put(text) + (self._stream.end() if is_over else [])
        self.is_call = self.is_call or any(event.kind == "call" for event in events)
        return self._plain(events) if self._is_plain else events

    def whole(self, text):
        """{kind: text} of a whole answer; a kind that isn't there is missing."""
        if self._stream is None or not self._is_plain:
            parts = {}
            for kind, part in self.put(text, True):
                parts[kind] = parts.get(kind, "") + part
            return parts
        # Byte for byte what Qwen's server makes of it, which never had to tell the beginning before the end.
        _, name, arguments, content = parse_response(text)
        self.is_call = name is not None
        call = {"call": name, "arguments": arguments} if self.is_call else {}
        return {**call, **({"content": content.strip()} if content.strip() else {})}

    def _plain(self, events):
        told = []
        for event in events:
            if event.kind == "thought":
                self._thoughts.append(event.text)
                continue
            if event.kind == "call" and self._thoughts:
                told.append(Event("content", "".join(self._thoughts)))
            self._thoughts = []
            told.append(event)
        return told

    def finish_reason(self, answer):
        """str: the answer's own, or that a call is there, whole."""
        if self.is_call and answer.finish_reason == "stop":
            return "function_call" if self.is_older else "tool_calls"
        return answer.finish_reason


def _logprobs_of(scored):
    """The `logprobs` of chat completions."""
    def token(data, logprob):
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    return {"content": [{**token(one.data, one.logprob), "top_logprobs": [token(*other) for other in one.top]}
                        for one in scored], "refusal": None}


def _response(job, prompt, shapes):
    """The body of a whole answer."""
    body, service = job.body, job.service
    response = {"id": job.id, "object": "chat.completion", "created": job.created, "model": service.name,
                "system_fingerprint": service.fingerprint,
                "choices": [_choice(choice, shape, body) for choice, shape in zip(job.choices, shapes)],
                "usage": job.usage()}
    if body.return_token_ids:
        response["prompt_token_ids"] = list(prompt.ids)
    return response


def _choice(choice, shape, body):
    piece = choice.read()
    parts = shape.whole(piece.text)
    message = {"role": "assistant", "content": parts.get("content"), "refusal": None}
    if "thought" in parts:
        message["reasoning_content"] = parts["thought"]
    if "call" in parts:
        call = {"name": parts["call"], "arguments": parts.get("arguments", "")}
        message |= ({"function_call": call} if shape.is_older else
                    {"tool_calls": [{"id": shape.id, "type": "function", "function": call}]})
    elif message["content"] is None:
        message["content"] = ""
    choice.finish_reason = shape.finish_reason(choice.answer)
    told = {"index": choice.index, "message": message,
            "logprobs": _logprobs_of(piece.scored) if body.logprobs else None, "finish_reason": choice.finish_reason}
    if body.return_token_ids:
        told["token_ids"] = piece.token_ids
    return told


class _Writer:
    """The events of a stream. All of an event but what is new in it is written once."""

    def __init__(self, job, prompt, shapes):
        service, options = job.service, job.body.stream_options
        self.job, self.prompt, self.shapes, self.body = job, prompt, shapes, job.body
        self.has_usage = bool(options and options.include_usage)
        self.has_all_usage = bool(options and options.continuous_usage_stats)
        self.fields = {"id": job.id, "object": "chat.completion.chunk", "created": job.created, "model": service.name,
                       "system_fingerprint": service.fingerprint}
        head = b"data: " + dumps(self.fields)[:-1] + b',"choices":[{"index":'
        self.heads = [head + str(choice.index).encode() + b',"delta":' for choice in job.choices]

    def begin(self):
        """bytes: who speaks, for each choice."""
        content = None if self.prompt.tools else ""
        first = dumps({"role": "assistant", "content": content})
        ids = {"prompt_token_ids": list(self.prompt.ids)} if self.body.return_token_ids else {}
        return b"".join(self._chunk(choice.index, first, more=ids) for choice in self.job.choices)

    def event(self, choice, piece):
        """bytes of what is new of a choice; an event more for its end."""
        shape, deltas = self.shapes[choice.index], []
        for kind, text in shape.put(piece.text, piece.is_over):
            deltas.append(self._delta(shape, kind, text))
        if not deltas and (piece.token_ids or piece.scored or (self.has_all_usage and not piece.is_over)):
            deltas.append(b"{}" if self.prompt.tools else b'{"content":""}')
        data, last = b"", len(deltas) - 1
        for number, delta in enumerate(deltas):
            # What belongs to the piece as a whole goes with its last event.
            scored, ids = (piece.scored, piece.token_ids) if number == last else ((), ())
            data += self._chunk(choice.index, delta, scored, ids=ids)
        if piece.is_over:
            choice.finish_reason = shape.finish_reason(choice.answer)
            data += self._chunk(choice.index, b"{}", reason=choice.finish_reason)
        return data

    def end(self):
        """bytes: what it took, if asked."""
        return event_of({**self.fields, "choices": [], "usage": self.job.usage()}) if self.has_usage else b""

    @staticmethod
    def _delta(shape, kind, text):
        if kind == "content":
            return b'{"content":%b}' % dumps(text)
        if kind == "thought":
            return b'{"reasoning_content":%b}' % dumps(text)
        call = {"name": text, "arguments": ""} if kind == "call" else {"arguments": text}
        if shape.is_older:
            return dumps({"function_call": call})
        begin = {"index": 0, "id": shape.id, "type": "function"} if kind == "call" else {"index": 0}
        return dumps({"tool_calls": [{**begin, "function": call}]})

    def _chunk(self, index, delta, scored=(), reason=None, ids=(), more=None):
        logprobs = dumps(_logprobs_of(scored)) if scored else b"null"
        tail = b',"token_ids":' + dumps(ids) if self.body.return_token_ids else b""
        if self.has_all_usage:
            usage = b',"usage":' + dumps(self.job.usage())
        else:
            usage = b',"usage":null' if self.has_usage else b""
        extra = b"," + dumps(more)[1:-1] if more else b""
        end = b"null" if reason is None else json.dumps(reason).encode()
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b}]%b%b}\n\n' % (
            self.heads[index], delta, logprobs, end, tail, usage, extra)
