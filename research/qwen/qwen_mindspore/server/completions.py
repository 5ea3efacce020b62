"""POST /v1/completions: texts, or ids, continued; with log probabilities of prompts as well, if asked."""
import json

from fastapi import APIRouter, Request

from qwen_mindspore.server.choices import Job, scored_prompt
from qwen_mindspore.server.errors import invalid
from qwen_mindspore.server.fields import choices_of, settings_of
from qwen_mindspore.server.prompts import check_room, grammars_of, in_thread
from qwen_mindspore.server.protocol import CompletionRequest
from qwen_mindspore.server.service import service_of
from qwen_mindspore.server.streams import EventStream, dumps, event_of, whole

__all__ = ["router"]

router = APIRouter()

DEFAULT_TOKENS = 16  # OpenAI's


@router.post("/v1/completions", response_model=None)
@router.post("/completions", response_model=None, include_in_schema=False)
async def create_completion(request: Request, body: CompletionRequest):
    """What follows a text; with `stream` as server-sent events."""
    service = service_of(request)
    service.admit(0)  # who can't come in need not wait for prompts to be read
    prompts = _listed(body.prompt)
    n = choices_of(body, service, len(prompts))
    _check(body, n, service)
    size = sum(map(len, prompts))
    ids = await in_thread(size, lambda: [_ids(service, prompt, body) for prompt in prompts])
    for one in ids:
        check_room(service, one, "prompt")
    grammars = await grammars_of(service, n * len(ids), body.response_format)
    settings = settings_of(body, service, DEFAULT_TOKENS, chat_format="raw", logprobs=body.logprobs,
                           prompt_logprobs=body.logprobs if body.echo else None)
    service.admit(sum(map(len, ids)) * n, n * len(ids))
    texts = [_text(service, *pair) for pair in zip(prompts, ids)] if body.echo else [""] * len(ids)
    job = Job(service, "completions", body, "cmpl", counts_answers=body.max_tokens != 0)
    try:
        for number, (prompt, text) in enumerate(zip(ids, texts)):
            job.add(prompt, settings, grammars[number * n:(number + 1) * n], strip=False, offset=len(text),
                    all_tokens=True)
    except BaseException:
        job.close()
        raise
    shaper = _Shaper(job, body, [text for text in texts for _ in range(n)])
    if body.stream:
        return EventStream(job, _Writer(job, shaper), service.limits.ping_seconds)
    return await whole(request, job, lambda: _response(job, shaper))


def _listed(prompt):
    """The prompts of a request, each a text or ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise invalid("prompt: expected a text, ids, or a list of either, found an empty list", "prompt")
    return prompt


def _check(body, n, service):
    most = service.limits.max_logprobs
    if body.logprobs is not None and not 0 <= body.logprobs <= most:
        raise invalid(f"logprobs: expected an integer from 0 to {most}, found {body.logprobs}", "logprobs")
    if body.best_of not in (None, n):
        raise invalid(f"best_of: expected n ({n}) or nothing, found {body.best_of}: ask for n answers and choose among "
                      "them", "best_of")


def _ids(service, prompt, body):
    """Ids of a prompt; ApiError for what the model can't continue."""
    if isinstance(prompt, str):
        ids = service.tokenizer.encode(prompt, allowed_special="all" if body.parse_special else set())
    else:
        ids, size = prompt, service.config.vocab_size
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise invalid(f"prompt: expected ids from 0 to {size - 1}, found {wrong}", "prompt")
    if not ids:
        raise invalid("prompt: expected something to continue, found nothing", "prompt")
    return ids


def _text(service, prompt, ids):
    return prompt if isinstance(prompt, str) else service.tokenizer.decode(ids)


class _Shaper:
    """What a client gets of the pieces of answers."""

    def __init__(self, job, body, texts):
        self.job, self.body, self.texts = job, body, texts
        self._fresh = {choice.index for choice in job.choices}  # nothing was told yet
        self._is_prompt_alone = body.max_tokens == 0

    def put(self, choice, piece):
        """(text, logprobs | None, ids) of a piece; the prompt in front of the first, if asked."""
        text, scored, ids = piece.text, piece.scored, piece.token_ids
        if self._is_prompt_alone:
            text, scored, ids = "", [], []
        if self.is_fresh(choice):
            self._fresh.discard(choice.index)
            text = self.texts[choice.index] + text
            if self.body.echo and self.body.logprobs is not None:
                tokenizer = self.job.service.tokenizer
                scored = scored_prompt(tokenizer, choice.prompt, choice.answer.prompt_logprobs) + scored
        return text, _logprobs_of(scored) if self.body.logprobs is not None else None, ids

    def is_fresh(self, choice):
        """Whether nothing was told of an answer yet."""
        return choice.index in self._fresh

    def reason(self, choice):
        """str, why an answer ended."""
        return "length" if self._is_prompt_alone else choice.answer.finish_reason


def _logprobs_of(scored):
    """The `logprobs` of completions. A token that was not among the likeliest stands with them."""
    tops = []
    for one in scored:
        told = {}
        for data, logprob in [*one.top, (one.data, one.logprob)]:
            told.setdefault(_name(data), logprob)  # the likeliest, where ids have one name
        tops.append(told if one.logprob is not None else None)
    return {"tokens": [_name(one.data) for one in scored], "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": tops, "text_offset": [one.offset for one in scored]}


def _name(data):
    """A token as text; part of a character as `bytes:\\xe4\\xbd`, as OpenAI's API has it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _response(job, shaper):
    body, service, choices = job.body, job.service, []
    for choice in job.choices:
        text, logprobs, ids = shaper.put(choice, choice.read())
        choice.finish_reason = shaper.reason(choice)
        told = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        if body.return_token_ids:
            told |= {"token_ids": ids, "prompt_token_ids": list(choice.prompt)}
        choices.append(told)
    return {"id": job.id, "object": "text_completion", "created": job.created, "model": service.name,
            "system_fingerprint": service.fingerprint, "choices": choices, "usage": job.usage()}


class _Writer:
    """The events of a stream."""

    def __init__(self, job, shaper):
        service, options = job.service, job.body.stream_options
        self.job, self.shaper, self.body = job, shaper, job.body
        self.has_usage = bool(options and options.include_usage)
        self.has_all_usage = bool(options and options.continuous_usage_stats)
        self.fields = {"id": job.id, "object": "text_completion", "created": job.created, "model": service.name,
                       "system_fingerprint": service.fingerprint}
        self.head = b"data: " + dumps(self.fields)[:-1] + b',"choices":[{"index":'

    def begin(self):
        """bytes: nothing before there is text."""
        return b""

    def event(self, choice, piece):
        """bytes of what is new of a choice."""
        ids = {}
        if self.body.return_token_ids and self.shaper.is_fresh(choice):
            ids["prompt_token_ids"] = list(choice.prompt)
        text, logprobs, token_ids = self.shaper.put(choice, piece)
        if self.body.return_token_ids:
            ids["token_ids"] = token_ids
        if piece.is_over:
            choice.finish_reason = self.shaper.reason(choice)
        if self.has_all_usage:
            usage = b',"usage":' + dumps(self.job.usage())
        else:
            usage = b',"usage":null' if self.has_usage else b""
        reason = b"null" if choice.finish_reason is None else json.dumps(choice.finish_reason).encode()
        return b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b%b}]%b}\n\n' % (
            self.head, choice.index, dumps(text), b"null" if logprobs is None else dumps(logprobs), reason,
            b"," + dumps(ids)[1:-1] if ids else b"", usage)

    def end(self):
        """bytes: what it took, if asked."""
        return event_of({**self.fields, "choices": [], "usage": self.job.usage()}) if self.has_usage else b""
