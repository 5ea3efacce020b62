"""A stand-in for the engine, quick and without a model, for tests of what is around it."""
import random
from types import SimpleNamespace

from qwen_mindspore.generate.engine import Output


class FakeEngine:
    """
    Answers with the prompt's last ids backwards, then the id `end`; at its own, random pace. With a seed in the
    settings the answer is of random letters instead.
    """

    def __init__(self, max_batch=4, seq_length=256, end=256, pace=0):
        self.max_batch, self.end = max_batch, end
        self.config = SimpleNamespace(seq_length=seq_length, block_size=1, cache_blocks=seq_length)
        self.random = random.Random(pace)
        self.requests, self.answers, self.cancelled = {}, {}, []
        self.most = 0  # requests there were at once

    def add(self, request):
        if len(request.prompt) >= self.config.seq_length:
            raise ValueError(f"the prompt has {len(request.prompt)} tokens and the model holds "
                             f"{self.config.seq_length}")
        settings = request.settings
        answer = [*list(request.prompt)[:-11:-1], self.end]
        if settings.do_sample:
            answer = [*random.Random(settings.seed).choices(range(97, 123), k=8), self.end]
        self.requests[request.id], self.answers[request.id] = settings, answer[:settings.max_new_tokens]
        self.most = max(self.most, len(self.requests))
        return request.id

    def cancel(self, id):
        if id in self.requests:
            self.cancelled.append(id)

    @property
    def has_work(self):
        return bool(self.requests)

    def step(self):
        outputs = []
        for id in self.cancelled:
            del self.requests[id]
            outputs.append(Output(id, None, "cancelled"))
        self.cancelled = []
        for id in list(self.requests)[:self.max_batch]:
            if self.random.random() < 0.7:
                token = self.answers[id].pop(0)
                if token < 0:
                    outputs.append(Output(id, None, "error", error=self.error(token)))
                else:
                    ended = (token,) in self.requests[id].stop_words_ids
                    reason = "stop" if ended else None if self.answers[id] else "length"
                    outputs.append(Output(id, token, reason, int(ended)))
                if outputs[-1].finish_reason:
                    del self.requests[id]
        return outputs
