"""
How tokens are chosen: each setting does what it says, by the model's own logits or after them, and an answer is the
same whatever goes on beside it.
"""
import time
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import TINY
from helpers.engine import run, settings
from qwen_mindspore.generate.blocks import BlockPool
from qwen_mindspore.generate.choice import Choice, logprobs_of
from qwen_mindspore.generate.engine import Engine, Request
from qwen_mindspore.generate.sampling import sample
from qwen_mindspore.generate.settings import GenerationSettings

VOCABULARY = 512
FORWARD = np.load(TINY / "forward.npz")


class Cycle:
    """A grammar: 100, 101, ..., 100 + length - 1, then nothing; it counts what it accepts."""

    def __init__(self, length):
        self.length, self.accepted = length, []

    def mask(self, logits):
        logits[np.arange(len(logits)) != 100 + len(self.accepted)] = -np.inf

    def steer(self, token, left):
        return token

    def accept(self, token):
        self.accepted.append(token)

    @property
    def is_over(self):
        return len(self.accepted) == self.length


@pytest.fixture
def logits():
    return np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)


@pytest.fixture(scope="module", params=["float", "8 bits"])
def model(request, build_tiny):
    """NTK begins at 64 tokens."""
    return build_tiny(use_past=True, seq_length=160, block_size=4, num_blocks=44,
                      use_cache_quantization=request.param == "8 bits")


def chosen(logits, ids=(1, 2), answer=(), **changes):
    """The token that is chosen behind a prompt and an answer."""
    choice = Choice(GenerationSettings(**changes), VOCABULARY)
    for token in answer:
        choice.append(token)
    return choice.choose(logits.copy(), np.array([*ids, *answer]), "the request")[0]


# Settings

def test_a_bias_is_added_to_the_logit_of_its_id(logits):
    likeliest = int(logits.argmax())
    assert chosen(logits, logit_bias={7: 100}) == 7 == chosen(logits, logit_bias=[[7, 100.0]])
    assert chosen(logits, logit_bias={likeliest: -100}) == int(np.argsort(logits)[-2])
    assert chosen(logits, logit_bias={"7": 100, VOCABULARY: 100, 10**6: 100}) == 7, "beyond the vocabulary is none"
    assert chosen(logits, logit_bias={7: 0.5}) == int((logits + 0.5 * (np.arange(VOCABULARY) == 7)).argmax())


@pytest.mark.parametrize("value", [
    {7: 101}, {-1: 1}, {"a": 1}, {7: "1"}, {7: None}, [7], [[7]], 3, "7", {7: float("nan")},
    {"1_0": 1}, {"\uff11": 1}, {"07": 1}, {"": 1}, {True: 1}, {None: 1}, [[7, 1], [7, 2]], {"7": 1, 7: 2},
    {"7": 1, "7.0": 1}])
def test_a_bias_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="logit_bias: expected {id: a number from -100 to 100}"):
        GenerationSettings(logit_bias=value)


def test_presence_is_counted_once_and_frequency_each_time_and_of_the_answer_alone(logits):
    logits[[5, 6, 7]] = 20.0, 19.5, 18.1
    assert chosen(logits, ids=(5, 5), presence_penalty=2.0, frequency_penalty=2.0) == 5, "the prompt does not count"
    assert chosen(logits, answer=[5], presence_penalty=0.4) == 5
    assert chosen(logits, answer=[5], presence_penalty=0.6) == 6
    assert chosen(logits, answer=[5] * 10, presence_penalty=0.4) == 5
    assert chosen(logits, answer=[5, 6, 5, 5, 5], frequency_penalty=0.4) == 6
    assert chosen(logits, answer=[5, 6, 5, 5, 5], frequency_penalty=0.6, presence_penalty=1.0) == 7
    assert chosen(logits, answer=[6] * 3, frequency_penalty=-2.0) == 6


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [2.1, -3, float("nan"), "1", True])
def test_a_penalty_out_of_openais_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a number from -2 to 2"):
        GenerationSettings(**{name: value})


def test_before_the_least_length_no_id_ends_the_answer(logits):
    logits[[8, 9]] = 30.0, 20.0
    changes = {"stop_words_ids": [[8], [5, 3]], "min_new_tokens": 2}
    assert [chosen(logits, answer=[1] * count, **changes) for count in range(4)] == [9, 9, 8, 8]


def test_min_p_cuts_what_is_less_likely_than_a_share_of_the_likeliest(logits):
    weights = np.exp(logits - logits.max())
    for min_p in (0.1, 0.5, 1.0):
        allowed = np.flatnonzero(weights >= min_p)
        options = SimpleNamespace(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_p=min_p)
        drawn = {sample(logits.copy(), options, uniform) for uniform in np.linspace(0, 1, 4000, endpoint=False)}
        assert drawn <= set(allowed.tolist()) and int(logits.argmax()) in drawn
        assert min_p == 0.1 or drawn == set(allowed.tolist())


def test_a_grammar_has_the_last_word_before_drawing(logits):
    grammar = Cycle(2)
    choice = Choice(GenerationSettings(logit_bias={7: 100}, do_sample=True, seed=3), VOCABULARY, grammar)
    for expected in (100, 101):
        token, _ = choice.choose(logits.copy(), np.array([1]), "the request")
        choice.append(token)
        assert token == expected
    assert grammar.accepted == [100, 101] and choice.is_over


def test_a_grammar_that_knows_what_is_left_takes_another_token_than_the_one_that_was_drawn(logits):
    class Last(Cycle):
        def mask(self, logits):
            pass

        def steer(self, token, left):
            return 7 if left == 0 else token

    choice = Choice(GenerationSettings(), VOCABULARY, Last(9), most=3)
    for expected in (int(logits.argmax()), int(logits.argmax()), 7):
        token, _ = choice.choose(logits.copy(), np.array([1]), "the request")
        choice.append(token)
        assert token == expected


def test_the_engine_tells_a_grammar_what_the_request_and_the_model_leave(model):
    lefts = []

    class Noting(Cycle):
        def steer(self, token, left):
            lefts.append(left)
            return token

    run(Engine(model), [Request([1, 2, 3], settings(4), grammar=Noting(9))])
    assert lefts == [3, 2, 1, 0]
    lefts.clear()
    run(Engine(model), [Request([1] * 157, settings(50), grammar=Noting(9))])
    assert lefts == [2, 1, 0]


def test_wishes_that_contradict_each_other_are_told(logits):
    class Ends(Cycle):
        def mask(self, logits):
            logits[np.arange(len(logits)) != 8] = -np.inf

    choice = Choice(GenerationSettings(stop_words_ids=[[8]], min_new_tokens=3), VOCABULARY, Ends(9))
    with pytest.raises(ValueError, match="the request: no token is left to choose at token 1 of the answer"):
        choice.choose(logits, np.array([1]), "the request")


@pytest.mark.parametrize("changes", [{}, {"logit_bias": {9: 1}}, {"min_new_tokens": 3, "stop_words_ids": [[5]]}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_told_even_where_it_would_be_masked(logits, changes, bad):
    logits[5] = bad
    with pytest.raises(FloatingPointError, match="the request: the logits are not finite at token 1 of the answer"):
        chosen(logits, **changes)


# Log probabilities

def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_log_probabilities_are_those_of_a_softmax_the_likeliest_first(logits):
    rows = np.stack([logits, -logits])
    expected = log_softmax(rows)
    for row, found in enumerate(logprobs_of(rows, [3, 4], 5)):
        order = np.argsort(-expected[row])[:5]
        assert found.token == 3 + row and found.logprob == pytest.approx(expected[row, 3 + row], abs=1e-5)
        assert [token for token, _ in found.top] == order.tolist()
        assert [value for _, value in found.top] == pytest.approx(expected[row, order].tolist(), abs=1e-5)
    assert logprobs_of(rows, [3, 4], 0)[0].top == ()
    assert len(logprobs_of(rows, [3, 4], 10**6)[0].top) == VOCABULARY


def test_log_probabilities_are_those_of_the_model_whatever_alters_the_choice(logits):
    changes = GenerationSettings(logprobs=2, logit_bias={7: 100}, repetition_penalty=1.5, temperature=0.1,
                                 do_sample=True, seed=1, top_k=1)
    token, logprob = Choice(changes, VOCABULARY).choose(logits.copy(), np.array([3, 4]), "the request")
    assert token == 7 == logprob.token
    assert logprob.logprob == pytest.approx(log_softmax(logits)[7], abs=1e-5)
    assert logprob.top[0][0] == int(logits.argmax())


@pytest.mark.parametrize("prefill_tokens", [512, 7, 1])
def test_those_of_a_prompt_are_the_references(build_tiny, prefill_tokens):
    model = build_tiny(use_past=True, seq_length=160, block_size=4, num_blocks=44)
    for ids, reference in zip(FORWARD["input_ids"], FORWARD["logits"]):
        engine = Engine(model, prefill_tokens=prefill_tokens)
        engine.add(Request(ids.tolist(), settings(1, prompt_logprobs=3, logprobs=3)))
        outputs = [output for _ in iter(lambda engine=engine: engine.has_work, False) for output in engine.step()]
        scores, expected = outputs[0].prompt_logprobs, log_softmax(reference)
        assert len(scores) == len(ids) and scores[0] is None
        for place, (token, score) in enumerate(zip(ids[1:], scores[1:])):
            assert score.token == token and score.logprob == pytest.approx(expected[place, token], abs=2e-5)
            top = np.argsort(-expected[place])[:3].tolist()
            assert [other for other, _ in score.top] == top
        assert outputs[0].token == int(reference[-1].argmax())
        assert outputs[0].logprob.logprob == pytest.approx(expected[-1].max(), abs=2e-5)


# In the engine

def requests():
    """Requests of every kind, many of which begin alike."""
    chance = np.random.default_rng(0)
    start = chance.integers(VOCABULARY, size=50).tolist()
    wishes = [{"logprobs": 2}, {"prompt_logprobs": 1}, {"logprobs": 0, "prompt_logprobs": 0}, {"min_p": 0.2},
              {"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"logit_bias": {3: 50.0}}, {"ignore_eos": True},
              {"min_new_tokens": 5, "stop_words_ids": tuple((token,) for token in range(0, VOCABULARY, 2))}, {}]
    found = []
    for number in range(27):
        changes = dict(wishes[number % len(wishes)])
        if number >= 9:
            changes |= {"do_sample": True, "seed": number, "temperature": 1.5}
        grammar = Cycle(4 + number % 5) if number % 4 == 2 else None
        prompt = [*start[:int(chance.integers(1, 50))], number]
        found.append(Request(prompt, settings(int(chance.integers(5, 30)), **changes), number, grammar))
    return found


def answers_of(model, some, **places):
    """By id: the tokens, the reason, the log probabilities of prompt and answer, and the evictions on the way."""
    engine, found = Engine(model, **places), {request.id: ([], [], [], []) for request in some}
    engine.pool = BlockPool(40)
    for request in some:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens, reasons, scores, prompt = found[output.id]
            tokens.append(output.token)
            reasons.append(output.finish_reason)
            scores += [(output.logprob.token, *output.logprob.top)] if output.logprob else []
            prompt += output.prompt_logprobs or []
    assert engine.stats().free_blocks == engine.pool.count
    return found, engine.evictions


def test_an_answer_is_the_same_alone_and_among_others_that_take_its_blocks(model):
    together, evictions = answers_of(model, requests(), max_batch=6, prefill_tokens=37)
    assert evictions, "else this test shows little"
    for request in requests():
        alone = answers_of(model, [request])[0][request.id]
        tokens, reasons, scores, prompt = together[request.id]
        assert (tokens, reasons) == alone[:2], request
        assert [score[0] for score in scores] == [score[0] for score in alone[2]]
        if request.settings.prompt_logprobs is not None:
            assert len(prompt) == len(alone[3]) == len(request.prompt)
            assert [s.logprob for s in prompt[1:]] == pytest.approx([s.logprob for s in alone[3][1:]], abs=2e-4)
        assert len(scores) == (len(tokens) if request.settings.logprobs is not None else 0)


def test_a_grammar_that_is_over_ends_the_answer(model):
    answers = run(Engine(model), [Request([1, 2], settings(9), "some", Cycle(4)),
                                  Request([1, 2], settings(3), "cut", Cycle(4))])
    assert answers.tokens == {"some": [100, 101, 102, 103], "cut": [100, 101, 102]}
    assert answers.reasons == {"some": "stop", "cut": "length"}


def test_a_grammar_that_fails_ends_its_own_request(model):
    class Broken(Cycle):
        def accept(self, token):
            raise RuntimeError("the matcher is broken")

    answers = run(Engine(model), [Request([1, 2], settings(3), "bad", Broken(4)), Request([1, 2], settings(3), "good")])
    assert answers.reasons == {"bad": "error", "good": "length"}


def test_what_was_there_already_is_told(model):
    engine, prompt = Engine(model), list(range(70))
    shared = 4 * (69 // 4) if not model.config.use_cache_quantization else 0
    for _ in range(2):
        engine.add(Request(prompt, settings(2)))
    cached = [output.cached_tokens for _ in iter(lambda: engine.has_work, False) for output in engine.step()]
    assert sorted(set(cached)) == sorted({0, shared})


def test_when_a_request_first_had_a_place_is_told_and_stays_so(model):
    engine, before = Engine(model, max_batch=1), time.monotonic()
    for number in range(2):
        engine.add(Request([number, 1], settings(3), number))
    outputs = [output for _ in iter(lambda: engine.has_work, False) for output in engine.step()]
    started = [{output.started for output in outputs if output.id == number} for number in range(2)]
    assert [len(times) for times in started] == [1, 1]
    assert before < min(started[0]) < min(started[1]) < time.monotonic()


def test_an_end_is_none_where_it_is_ignored_or_comes_too_soon(model):
    prompt = [5, 6, 7]
    first = run(Engine(model), [Request(prompt, settings(6), 0)]).tokens[0]
    ends = tuple((token,) for token in first[:1])
    stopped = run(Engine(model), [Request(prompt, settings(6, stop_words_ids=ends), 0)])
    assert stopped.tokens[0] == first[:1] and stopped.reasons[0] == "stop"
    later = run(Engine(model), [Request(prompt, settings(6, stop_words_ids=ends, min_new_tokens=3), 0)])
    assert first[0] not in later.tokens[0][:3]
    words = (tuple(first[:2]),)
    assert run(Engine(model), [Request(prompt, settings(6, stop_words_ids=words), 0)]).reasons[0] == "stop"
    held = run(Engine(model), [Request(prompt, settings(6, stop_words_ids=words, min_new_tokens=2), 0)])
    assert held.tokens[0][:2] == first[:2] and len(held.tokens[0]) > 2
