"""Requests and their answers: what tests of the engine share."""
from collections import Counter

from qwen_mindspore.generate.engine import Request
from qwen_mindspore.generate.settings import GenerationSettings


def settings(new_tokens=8, **others):
    return GenerationSettings(max_new_tokens=new_tokens, **others)


def alone(model, prompt, settings):
    """The answer of `generate`, which knows no stop words of several ids."""
    out = model.generate(list(prompt), max_new_tokens=settings.max_new_tokens, do_sample=settings.do_sample,
                         temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p,
                         seed=settings.seed, repetition_penalty=settings.repetition_penalty, eos_token_id=[])
    return out[0][len(prompt):].tolist()


class Answers:
    """Outputs, gathered by request."""

    def __init__(self):
        self.tokens, self.reasons = {}, {}

    def take(self, outputs):
        assert len({output.id for output in outputs}) == len(outputs), "at most one output a request and step"
        for output in outputs:
            assert output.id not in self.reasons, "nothing follows the end"
            tokens = self.tokens.setdefault(output.id, [])
            if output.token is not None:
                tokens.append(output.token)
            if output.finish_reason:
                self.reasons[output.id] = output.finish_reason
        return self


def run(engine, requests=()):
    """Add requests, and run till there is no work; the Answers."""
    answers = Answers()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        answers.take(engine.step())
        check_blocks(engine)
    return answers


def check_blocks(engine):
    """Each block is empty, kept, or held by as many as say so; rows of the batch have the blocks of their sequence."""
    pool, held = engine.pool, Counter()
    for sequence in engine.sequences.values():
        held.update(sequence.blocks)
    assert [held[block] for block in range(pool.count)] == pool.holders
    everywhere = [*pool.empty, *pool.kept, *held]
    assert sorted(everywhere) == list(range(pool.count)), "each block is in one place"
    assert {digest: block for block, digest in pool.digests.items()} == pool.published
    assert set(pool.kept) <= set(pool.digests) and not set(pool.empty) & set(pool.digests)
    for row, sequence in enumerate(engine.decoding):
        assert sequence.row == row
        assert engine.tables[row, :len(sequence.blocks)].tolist() == sequence.blocks


class Workload:
    """Random requests, many of which begin alike, and the answer that each gets alone."""

    def __init__(self, model, random, count):
        beginnings = [random.integers(512, size=size).tolist() for size in (9, 16, 70)]
        self.requests, self.expected = {}, {}
        for i in range(count):
            prompt = random.integers(512, size=random.integers(1, 30)).tolist()
            if random.random() < 0.6:
                prompt = beginnings[random.integers(3)] + prompt
            sampled = dict(do_sample=True, seed=int(random.integers(1000))) if random.random() < 0.3 else {}
            penalty = dict(repetition_penalty=1.2) if random.random() < 0.2 else {}
            self.requests[i] = Request(prompt, settings(int(random.integers(1, 40)), **sampled, **penalty), id=i)
            self.expected[i] = alone(model, prompt, self.requests[i].settings)
