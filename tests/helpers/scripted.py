"""
An engine that plays a script: given tokens, at a given pace, without a model; and a service around it.

    engine = ScriptedEngine("Hello!")
    service = scripted_service(tokenizer, engine, loop)
"""
import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.choice import Logprob
from qwen_mindspore.generate.engine import Stats
from qwen_mindspore.generate.requests import Output
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.runner import Runner
from qwen_mindspore.server.service import Service

__all__ = ["Fault", "ScriptedEngine", "scripted_service"]


class Fault(Exception):
    """In a script in a token's place: what goes wrong there."""


class ScriptedEngine:
    """
    What the server needs of `generate.engine.Engine`, with the tokens of a script: `max_new_tokens`, stop words of ids,
    a grammar's `accept` and `is_over`, cancellation and places in the batch are as the engine has them.

    Args:
        script (str | list[int | Exception] | Callable[[Request], str | list]): What every request is answered with;
            text as its UTF-8 bytes, which are the ids of the tests' vocabulary. Behind it comes `end`. An exception
            ends the request with an error.
        pace (float): Seconds that a step takes.
        max_batch (int): Requests that get a token each step.
        room (int): Tokens of a prompt and its answer.
        end (int): The id behind a script: `<|im_end|>`.
        cached (int): Tokens of each prompt that are told to have been there already.

    Attributes:
        sequences (dict): What has not ended: empty once all is over.
        requests (list[Request]): All that were ever added.
        broken (Exception): When set, the next step raises it.
        hold (threading.Event): While it is clear, steps wait (it is set at the beginning).
    """

    def __init__(self, script="", pace=0.0, max_batch=4, room=512, end=258, cached=0, vocab_size=512):
        self.script, self.pace, self.max_batch, self.end, self.cached = script, pace, max_batch, end, cached
        self.config = SimpleNamespace(seq_length=room, block_size=1, cache_blocks=room, vocab_size=vocab_size)
        self.sequences, self.requests, self.steps, self.broken = {}, [], 0, None
        self.computed_tokens, self.lock, self.cancelled = 0, threading.Lock(), []
        self.hold = threading.Event()
        self.hold.set()

    def add(self, request):
        length, room = len(request.prompt), self.config.seq_length
        if not length:
            raise ValueError("the prompt is empty")
        if length >= room:
            raise ValueError(f"the prompt has {length} tokens and the model holds {room} with the answer")
        if max(request.prompt) >= self.config.vocab_size:
            raise ValueError(f"the prompt: id {max(request.prompt)} is outside the vocabulary")
        script = self.script(request) if isinstance(self.script, Callable) else self.script
        tokens = [*script.encode()] if isinstance(script, str) else [*script]
        limit = min(request.settings.max_new_tokens, room - length)
        with self.lock:
            if request.id in self.sequences:
                raise ValueError(f"id {request.id!r}: a request of that id has not ended yet")
            self.sequences[request.id] = SimpleNamespace(request=request, left=[*tokens, self.end], said=[],
                                                         limit=limit, started=None)
            self.requests.append(request)
        return request.id

    def cancel(self, id):
        with self.lock:
            if id in self.sequences:
                self.cancelled.append(id)

    @property
    def has_work(self):
        return bool(self.sequences)

    def stats(self):
        running = min(len(self.sequences), self.max_batch)
        return Stats(running, len(self.sequences) - running, 100 - running, 0, self.computed_tokens, 0, 0)

    def step(self):
        self.hold.wait()
        if self.pace:
            time.sleep(self.pace)
        if self.broken:
            error, self.broken = self.broken, None
            raise error
        with self.lock:
            self.steps += 1
            outputs = [Output(id, None, "cancelled") for id in dict.fromkeys(self.cancelled)
                       if self.sequences.pop(id, None)]
            self.cancelled = []
            for id, sequence in list(itertools.islice(self.sequences.items(), self.max_batch)):
                outputs.append(self._next(id, sequence))
                if outputs[-1].finish_reason:
                    del self.sequences[id]
        return outputs

    def _next(self, id, sequence):
        request, settings = sequence.request, sequence.request.settings
        token = sequence.left.pop(0) if sequence.left else self.end
        if isinstance(token, Exception):
            return Output(id, None, "error", error=token)
        prompt_logprobs = None
        if not sequence.said:
            self.computed_tokens += len(request.prompt)
            if settings.prompt_logprobs is not None:
                prompt_logprobs = [None, *(logprob_of(id, settings.prompt_logprobs) for id in request.prompt[1:])]
        sequence.started = sequence.started or time.monotonic()
        sequence.said.append(token)
        is_over = False
        if request.grammar is not None:
            request.grammar.mask(np.zeros(self.config.vocab_size, np.float32))
            request.grammar.accept(token)
            is_over = request.grammar.is_over
        stop = max((len(word) for word in settings.stop_words_ids
                    if tuple(sequence.said[-len(word):]) == tuple(word)), default=0)
        reason = "stop" if stop or is_over else "length" if len(sequence.said) >= sequence.limit else None
        logprob = None if settings.logprobs is None else logprob_of(token, settings.logprobs)
        return Output(id, token, reason, stop, logprob=logprob, prompt_logprobs=prompt_logprobs,
                      cached_tokens=min(self.cached, len(request.prompt) - 1), started=sequence.started)


def logprob_of(token, count):
    """A Logprob: -0.25 for the token, -1, -2, ... for the ids behind it."""
    others = [((token + place) % 256, -float(place)) for place in range(1, count)]
    return Logprob(token, -0.25, ((token, -0.25), *others)[:count])


@contextlib.contextmanager
def scripted_service(tokenizer, engine, loop, settings=None, **changes):
    """A Service, ready, over an engine, mostly a scripted one; its thread ends with the block. `changes` are fields."""
    runner = Runner(Answers(engine, tokenizer), loop).start()
    chat_format = "chatml" if changes.get("chat", True) else "raw"
    settings = settings or GenerationSettings(chat_format=chat_format, max_new_tokens=100)
    service = Service("qwen-test", tokenizer, engine.config, settings, runner=runner, state="ready", **changes)
    runner.on_growth = service.metrics.grew
    try:
        yield service
    finally:
        if hasattr(engine, "hold"):
            engine.hold.set()
        runner.stop(10)
