"""The answers of one HTTP request while they grow: what is new of each, with ids and log probabilities if asked."""
import asyncio
import codecs
import math
import time
import uuid
from typing import NamedTuple

from qwen_mindspore.server.errors import ApiError, invalid
from qwen_mindspore.server.fields import with_seed
from qwen_mindspore.server.service import Finished

__all__ = ["Choice", "Job", "Piece", "Scored", "scored_prompt"]

LEAST = -9999.0  # in place of -inf, which JSON has not


class Scored(NamedTuple):
    """A token and how likely it was. `data` are its bytes; `top`: [(its bytes, log probability)], likeliest first."""

    data: bytes
    logprob: float | None
    top: list
    offset: int  # where it begins in the text, in characters


class Piece(NamedTuple):
    """What is new of an answer: text, ids of its tokens, Scored tokens; and whether that was the last of it."""

    text: str
    token_ids: list
    scored: list
    is_over: bool


class _Offsets:
    """Where tokens begin in the text that they make, in characters, as `TextStream` makes it."""

    def __init__(self, tokenizer, skips_special=True):
        self.tokenizer, self.skips_special, self.characters = tokenizer, skips_special, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token):
        """(str, int): the characters that the token completes, and the place of the first one."""
        start = self.characters
        text = self._decoder.decode(self.tokenizer.decode_bytes([token], skip_special_tokens=self.skips_special))
        self.characters += len(text)
        return text, start

    def has_text(self, token):
        """Whether a token is, or begins, a part of the text, as a control token that is skipped is not."""
        return bool(self.tokenizer.decode_bytes([token], skip_special_tokens=self.skips_special))


def _scored(tokenizer, logprob, offset):
    def of(token, value):
        return tokenizer.decode_bytes([token]), value if math.isfinite(value) else LEAST

    return Scored(*of(logprob.token, logprob.logprob), [of(*pair) for pair in logprob.top], offset)


def scored_prompt(tokenizer, prompt, logprobs):
    """list[Scored] of a prompt's tokens; `logprobs` are the Answer's, without any for the first token."""
    offsets, scored = _Offsets(tokenizer, skips_special=False), []
    for token, logprob in zip(prompt, logprobs):
        _, start = offsets.put(token)
        scored.append(Scored(tokenizer.decode_bytes([token]), None, [], start) if logprob is None
                      else _scored(tokenizer, logprob, start))
    return scored


class Choice:
    """
    One of the answers, read bit by bit.

    Args:
        index (int): Its number in the response.
        ticket (Ticket): Its answer.
        tokenizer (QwenTokenizer): The model's.
        prompt (list[int]): What it answers.
        strips (bool): The answer's text is without white space around it.
        wants_ids, wants_logprobs (bool): What pieces hold besides text.
        all_tokens (bool): Scored are all tokens, those that end the answer among them. Otherwise those that the text
            consists of, each with the text that it belongs to.
        offset (int): Characters in front of the answer's text, as the Scored count them.
    """

    def __init__(self, index, ticket, tokenizer, prompt, strips, wants_ids, wants_logprobs, all_tokens, offset=0):
        self.index, self.ticket, self.prompt, self.offset = index, ticket, prompt, offset
        self.finish_reason = None  # told to the client
        self._tokenizer, self._wants_ids, self._all = tokenizer, wants_ids, all_tokens
        self._sent, self._ids, self._read = 0, 0, 0  # characters, ids, log probabilities that were handed out or read
        self._offsets = _Offsets(tokenizer) if wants_logprobs else None
        self._pending = []  # (logprob, its beginning, its end) of tokens whose text is not there yet
        self._is_blank, self._blank = strips, 0  # only white space has come; so much of it is cut off in front

    @property
    def answer(self):
        """The Answer."""
        return self.ticket.answer

    def read(self):
        """Piece, what is new since the last call; None where nothing is."""
        is_over = self.ticket.is_over  # before all else, see Ticket
        text, ids, scored = self.answer.text, [], []
        new = text[self._sent:]
        if self._wants_ids:
            count = self.answer.tokens
            ids, self._ids = self.answer.token_ids[self._ids:count], count
        if self._offsets:
            scored = self._scores(len(text))
        if not (new or ids or scored or is_over):
            return None
        self._sent = len(text)
        return Piece(new, ids, scored, is_over)

    def _scores(self, length):
        logprobs = self.answer.logprobs
        for logprob in logprobs[self._read:len(logprobs)]:
            self._read += 1
            text, start = self._offsets.put(logprob.token)
            if self._is_blank:
                self._blank += len(text) - len(text.lstrip())
                self._is_blank = not text.strip()
            self._pending.append((logprob, start, start + len(text)))
        if self._all:
            ready, self._pending = self._pending, []
            return [_scored(self._tokenizer, logprob, self.offset + start) for logprob, start, _ in ready]
        blank, scored = self._blank, []
        while self._pending and self._pending[0][1] < blank + length:
            logprob, start, end = self._pending.pop(0)
            if (end > blank or start >= blank) and self._offsets.has_text(logprob.token):
                scored.append(_scored(self._tokenizer, logprob, self.offset + max(start - blank, 0)))
        return scored

    def fail(self):
        """ApiError of an answer that has ended with an error, else None."""
        error = self.ticket.error
        if error is None:
            return None
        if isinstance(error, ApiError):
            return error
        return ApiError(500, f"the answer failed: {error}", code="generation_failed")


class Job:
    """
    The answers of one HTTP request, from admission to their ends. `add` all, then read the choices each time that
    `event` is set; `close` in any case.

    Args:
        service (Service): Who answers.
        endpoint (str): "chat" or "completions".
        body (GenerationRequest): The request.
        prefix (str): Of its id.
        counts_answers (bool): Whether tokens of answers count; not where a prompt alone is wanted, and one is cut off.
    """

    def __init__(self, service, endpoint, body, prefix, counts_answers=True):
        self._counts_answers = counts_answers
        self.service, self.endpoint, self.body = service, endpoint, body
        self.id = f"{prefix}-{body.request_id or uuid.uuid4().hex}"
        self.created = int(time.time())
        self.event, self.choices, self.is_gone = asyncio.Event(), [], False
        self._prompts, self._max_tokens, self._reported = [], 0, False  # the first choice of each prompt

    def add(self, prompt, settings, grammars, strip=None, offset=0, all_tokens=False):
        """
        Ask for answers to one prompt.

        Args:
            prompt (list[int]): Ids.
            settings (GenerationSettings): Of the first answer; the others have the next seeds.
            grammars (list): One for each answer, or None.
            strip: See `Answers.add`.
            offset, all_tokens: See `Choice`.

        Raises:
            ApiError: The engine refuses it.
        """
        for index, grammar in enumerate(grammars):
            try:
                ticket = self.service.runner.submit(prompt, with_seed(settings, index), grammar, strip, self.event)
            except ValueError as error:
                raise invalid(str(error), "messages" if self.endpoint == "chat" else "prompt") from None
            except RuntimeError as error:
                raise ApiError(503, str(error)) from None
            choice = Choice(len(self.choices), ticket, self.service.tokenizer, prompt,
                            settings.chat_format == "chatml" if strip is None else strip, self.body.return_token_ids,
                            settings.logprobs is not None, all_tokens, offset)
            self.choices.append(choice)
            if index == 0:
                self._prompts.append(choice)
        self._max_tokens = settings.max_new_tokens

    @property
    def is_over(self):
        """Whether all answers have ended."""
        return all(choice.ticket.is_over for choice in self.choices)

    @property
    def failure(self):
        """ApiError of the first answer that has failed; None where none has."""
        return next((error for choice in self.choices if (error := choice.fail())), None)

    def queued(self):
        """int, how many answers have to end before the engine begins with this; 0 where it has, or may."""
        return min(self.service.runner.queued(choice.ticket) for choice in self.choices)

    def leave(self):
        """The client is gone: what it has asked for ends with the next step."""
        self.is_gone = True
        self.close()
        self.event.set()

    def close(self):
        """End what has not ended."""
        for choice in self.choices:
            choice.ticket.cancel()

    def usage(self):
        """dict, as OpenAI's: each prompt counts once, however many answers it has."""
        prompt = sum(choice.answer.prompt_tokens for choice in self._prompts)
        completion = sum(choice.answer.tokens for choice in self.choices) if self._counts_answers else 0
        cached = sum(choice.answer.cached_tokens for choice in self._prompts)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached}}

    def report(self, scope):
        """Tell metrics and logs, once, what has come of it."""
        if self._reported or not self.choices:
            return
        self._reported = True
        usage, tickets = self.usage(), tuple(choice.ticket for choice in self.choices)
        firsts = [ticket.first for ticket in tickets if ticket.first is not None]
        begin = tickets[0].submitted
        self.service.report(scope, Finished(
            self.id, self.endpoint, bool(self.body.stream), usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"],
            tuple(self._reason(choice) for choice in self.choices), len(tickets), self._max_tokens,
            min(firsts) - begin if firsts else None, time.monotonic() - begin, tickets))

    @staticmethod
    def _reason(choice):
        if choice.ticket.error is not None:
            return "error"
        if choice.finish_reason:
            return choice.finish_reason
        return choice.answer.finish_reason or "cancelled"
