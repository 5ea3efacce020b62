"""What an engine is asked, what it brings, and a request on its way through it."""
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwen_mindspore.generate.choice import Logprob
from qwen_mindspore.generate.settings import GenerationSettings

__all__ = ["Output", "Request", "RunningRequest"]


@dataclass
class Request:
    """
    What to continue, and how.

    Args:
        prompt (Sequence[int]): Ids.
        settings (GenerationSettings): `stop_words`, which are text, and what belongs to a conversation are not looked
            at; all else is.
        id (Hashable): What outputs name the request by. Default: a number that the engine gives.
        grammar: What may come next, or None; see `choice.Choice`. It serves one request.
    """

    prompt: Sequence[int]
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    id: Hashable = None
    grammar: object = None


@dataclass(frozen=True)
class Output:
    """
    What one step brings for one request.

    Args:
        id (Hashable): The request's.
        token (int): The next token; None where the request ended without another.
        finish_reason (str): None while the request goes on. "stop": the answer ends with one of `stop_words_ids`, or
            the grammar lets nothing follow; "length": it has `max_new_tokens`, or there is no room for more;
            "cancelled"; "error".
        stop_length (int): How many of the last tokens, this one included, are the stop word.
        error (Exception): What went wrong, with "error".
        logprob (Logprob): How likely the token was, where the settings' `logprobs` asks.
        prompt_logprobs (list[Logprob | None]): With the first token, where the settings' `prompt_logprobs` asks: of
            each token of the prompt; the first, which nothing stands before, has None.
        cached_tokens (int): How many of the prompt's tokens were there already and were not computed.
        started (float): `time.monotonic()` when the request first had a place; None where it never did.
    """

    id: Hashable
    token: int | None
    finish_reason: str | None = None
    stop_length: int = 0
    error: Exception | None = None
    logprob: Logprob | None = None
    prompt_logprobs: list | None = None
    cached_tokens: int = 0
    started: float | None = field(default=None, compare=False)


class RunningRequest:
    """
    A request on its way.

    Attributes:
        ids (np.ndarray): int32, the first `length` of which are there: the prompt's `prompt_length`, then the answer's.
        limit (int): The most that `length` may become.
        unit (int): How many tokens it shares with others, or none of them: those of a block, or of several.
        computed (int): How many of them have keys and values in the cache, in `blocks`.
        blocks (list[int]): Empty while it waits.
        row (int): In the decoding batch; None outside.
        choice (Choice): How its tokens are chosen.
        cached (int): How many tokens were there already when it was first computed; None before.
        started (float): When that was, by `time.monotonic()`; None before.
        scores (list[Logprob | None]): Of the prompt's tokens, as far as they are computed; None where nobody asks.
    """

    def __init__(self, id, settings, prompt, limit, factor, arrival, unit, choice):
        self.id, self.settings, self.arrival, self.choice = id, settings, arrival, choice
        self.ids, self.length, self.prompt_length, self.limit = prompt, len(prompt), len(prompt), limit
        self.computed, self.blocks, self.row = 0, [], None
        self.unit = unit
        # Digests of the full units, each of all that stands up to its end. The keys depend on the NTK factor, too.
        self.chain = [b"%d" % factor]
        self.cached = self.started = None
        self.scores = None if settings.prompt_logprobs is None else [None]

    def digest(self, index, block_size):
        """What block `index` is known by: its unit, all of whose tokens are known, and its place there."""
        unit, place = divmod(index * block_size, self.unit)
        while len(self.chain) <= unit + 1:
            start = (len(self.chain) - 1) * self.unit
            self.chain.append(hashlib.sha256(self.chain[-1] + self.ids[start:start + self.unit].tobytes()).digest())
        return self.chain[unit + 1], place

    @property
    def is_scored(self):
        """Whether the logits of all of its tokens are wanted."""
        return self.scores is not None and len(self.scores) < self.prompt_length

    def choose(self, logits):
        """The next token by its logits [vocab_size], which are altered, and its Logprob; see `Choice.choose`."""
        return self.choice.choose(logits, self.ids[:self.length], f"request {self.id!r}")

    def append(self, token, logprob=None):
        """Add a token; the Output that says so."""
        if self.length == len(self.ids):
            self.ids = np.concatenate([self.ids, np.empty(self.limit - self.length, np.int32)])
        self.ids[self.length] = token
        self.length += 1
        may_end = self.choice.may_end
        self.choice.append(token)
        stop_length = self._stop_length(token) if may_end else 0
        reason = "stop" if stop_length or self.choice.is_over else "length" if self.length == self.limit else None
        scores = self.scores if self.length == self.prompt_length + 1 else None
        return Output(self.id, token, reason, stop_length, None, logprob, scores, self.cached, self.started)

    def _stop_length(self, token):
        """The length of the longest stop word that the answer ends with; 0 for none."""
        answered, longest = self.length - self.prompt_length, 0
        for word in self.settings.stop_words_ids:
            if (word[-1] == token and longest < len(word) <= answered
                    and tuple(self.ids[self.length - len(word):self.length]) == word):
                longest = len(word)
        return longest
