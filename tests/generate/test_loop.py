"""The generate loop: sampling against its definition, settings, logits processors; greedy is in test_qwen_model.py."""
import numpy as np
import pytest
from mindformers import GenerationConfig
from mindformers.generation import GenerationMixin
from mindformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from mindspore import Tensor

from qwen_mindspore.generate.arguments import generation_arguments
from qwen_mindspore.generate.sampling import next_token, sample
from qwen_mindspore.model.config import QwenConfig

VOCABULARY = 2000


@pytest.fixture
def logits():
    return (np.random.default_rng(0).standard_normal(VOCABULARY) * 3).astype(np.float32)


def defined_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The definition, with a sorted vocabulary, in float64."""
    scores = logits.astype(np.float64) / temperature
    order = np.argsort(-scores, kind="stable")
    probabilities = np.exp(scores - scores.max())
    if top_k:
        probabilities[order[top_k:]] = 0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    return probabilities / probabilities.sum()


CASES = [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"top_p": 0.999999}, {"top_k": 50, "top_p": 0.5},
         {"temperature": 1.7, "top_k": 100, "top_p": 0.9}, {"top_p": 1e-6}, {"top_k": VOCABULARY + 7}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_each_token_as_often_as_it_should(logits, case):
    """A fine grid of random numbers draws each token in proportion to its share of [0, 1)."""
    settings = GenerationConfig(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **case})
    draws = 4000
    counts = np.bincount([sample(logits.copy(), settings, (i + 0.5) / draws) for i in range(draws)],
                         minlength=VOCABULARY)
    expected = defined_probabilities(logits, **case)
    assert not counts[expected == 0].any()
    np.testing.assert_allclose(counts / draws, expected, atol=1.01 / draws)


def test_random_draws_pass_a_chi_squared_test(logits):
    settings = GenerationConfig(temperature=1.2, top_k=0, top_p=0.8)
    random = np.random.RandomState(0)
    expected = defined_probabilities(logits, temperature=1.2, top_p=0.8)
    counts = np.bincount([sample(logits.copy(), settings, random.random_sample()) for _ in range(20000)],
                         minlength=VOCABULARY)
    kept = expected > 5 / 20000
    chi = ((counts[kept] - 20000 * expected[kept]) ** 2 / (20000 * expected[kept])).sum()
    freedom = kept.sum()
    assert chi < freedom + 5 * np.sqrt(2 * freedom)


def test_a_certain_token_is_drawn_whatever_the_number(logits):
    logits[7] = 100
    settings = GenerationConfig(top_k=0, top_p=0.8)
    assert {sample(logits.copy(), settings, uniform) for uniform in (0.0, 0.5, 1 - 1e-12)} == {7}


WAYS = [{"do_sample": False}, {"do_sample": True}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "top_p": 0.5}]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_choose_no_token(logits, way, bad):
    settings = GenerationConfig(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **way})
    logits[1234] = bad
    with pytest.raises(FloatingPointError, match="row 7: the logits are not finite: .*float16.*check the checkpoint"):
        next_token(logits, settings, lambda: 0.5, "row 7")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_tokens_may_be_forbidden_but_not_all(logits, way):
    settings = GenerationConfig(**{"temperature": 0.7, "top_k": 0, "top_p": 1.0, **way})
    logits[np.arange(VOCABULARY) != 42] = -np.inf
    assert next_token(logits.copy(), settings, lambda: 0.5, "row 7") == 42
    logits[42] = -np.inf
    with pytest.raises(FloatingPointError, match="row 7"):
        next_token(logits, settings, lambda: 0.5, "row 7")


@pytest.mark.parametrize("name, value", [("top_p", 3), ("top_p", 0), ("temperature", -1), ("top_k", -5),
                                         ("top_k", 2.5), ("repetition_penalty", 0)])
def test_settings_out_of_range_are_refused(name, value):
    for given in ((GenerationConfig(**{name: value}), {}), (None, {name: value})):
        with pytest.raises(ValueError, match=f"{name}: expected .*found {value}"):
            generation_arguments(QwenConfig(), *given)


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, batch_size=3)


def test_a_seed_makes_an_answer_repeatable_and_leaves_the_global_state_alone(model):
    settings = dict(max_new_tokens=12, do_sample=True, top_k=0, top_p=1.0, eos_token_id=[])
    np.random.seed(5)
    first, second, other = (model.generate([1, 2, 3], seed=seed, **settings)[0].tolist() for seed in (1, 1, 2))
    assert first == second != other
    after = np.random.random_sample()
    np.random.seed(5)
    assert after == np.random.random_sample()


def test_without_a_seed_numpys_state_decides(model):
    settings = dict(max_new_tokens=12, do_sample=True, top_k=0, top_p=1.0, eos_token_id=[])
    answers = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        answers.append(model.generate([1, 2, 3], **settings)[0].tolist())
    assert answers[0] == answers[1] != answers[2]


def greedy_with_penalty(model, prompt, penalty, steps):
    """The definition: a token that is there already has its logit divided, or, below zero, multiplied."""
    ids = list(prompt)
    for _ in range(steps):
        out = model.generate(ids, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True,
                             eos_token_id=[])
        logits = out.logits[0][0].copy()
        seen = np.unique(ids)
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        ids.append(int(logits.argmax()))
    return ids


def test_repetition_penalty_is_by_the_sequence_alone_not_by_its_padding(model):
    prompts = [[5, 9, 5], [7, 301, 7, 7, 301, 20, 8]]
    expected = [greedy_with_penalty(model, prompt, 1.3, 6) for prompt in prompts]
    out = model.generate(prompts, max_new_tokens=6, do_sample=False, repetition_penalty=1.3, eos_token_id=[])
    assert [ids.tolist() for ids in out] == expected


def test_a_logits_processor_of_ones_own_is_asked(model):
    class Only42(LogitsProcessor):
        def process_np(self, logits, sequence_ids):
            logits[:] = -1e9
            logits[:, 42] = 0
            return logits

    processors = LogitsProcessorList()
    processors.append(Only42())
    out = model.generate([[1, 2], [3]], max_new_tokens=3, do_sample=False, eos_token_id=[],
                         logits_processor=processors)
    assert [ids.tolist() for ids in out] == [[1, 2, 42, 42, 42], [3, 42, 42, 42]]


def test_a_plain_function_may_be_a_logits_processor(model):
    def only_42(ids, logits):
        return Tensor(np.where(np.arange(logits.shape[1]) == 42, 0, -1e9).astype(np.float32)[None])

    out = model.generate([1, 2], max_new_tokens=2, do_sample=False, eos_token_id=[], logits_processor=[only_42])
    assert out[0].tolist() == [1, 2, 42, 42]


@pytest.mark.parametrize("wrong", [lambda ids, logits: None, lambda ids, logits: logits[:, :3]])
def test_what_a_logits_processor_gives_must_be_logits(model, wrong):
    with pytest.raises(ValueError, match=r"^logits_processor: .*: expected logits of shape \(1, 512\), found"):
        model.generate([1, 2], max_new_tokens=2, do_sample=False, eos_token_id=[], logits_processor=[wrong])


def test_min_new_tokens_holds_an_eos_back(model):
    first = int(model.generate([1, 2, 3], max_new_tokens=1, do_sample=False, eos_token_id=[])[0][-1])
    out = model.generate([1, 2, 3], max_new_tokens=6, min_new_tokens=3, do_sample=False, eos_token_id=[first],
                         pad_token_id=511)
    assert len(out[0]) >= 6 and first not in out[0][3:5]


def test_min_new_tokens_are_each_prompts_own_whatever_it_begins_with(model):
    """Also those of a prompt that is nothing but padding, which is the end of a text."""
    prompts = [[256], [5, 9, 5, 1, 2, 3]]
    firsts = [int(model.generate(prompt, max_new_tokens=1, do_sample=False, eos_token_id=[])[0][-1])
              for prompt in prompts]
    ends = [*firsts, 256, 10 ** 6]
    for given in ({"min_new_tokens": 2}, {"min_length": 3}):
        out = model.generate(prompts, max_new_tokens=9, do_sample=False, eos_token_id=ends, pad_token_id=256, **given)
        answers = [ids[len(prompt):].tolist() for ids, prompt in zip(out, prompts)]
        if "min_new_tokens" in given:
            assert all(len(answer) >= 3 and not set(answer[:2]) & set(ends) for answer in answers)
        else:
            assert len(answers[0]) >= 3 and answers[1] == [firsts[1]], "the second is long enough as it is"


@pytest.fixture(scope="module", params=[True, False], ids=["cache", "no cache"])
def either_model(request, build_tiny):
    return build_tiny(use_past=request.param, batch_size=2)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("step", [0, 1])
def test_the_prompt_whose_logits_are_not_finite_is_named(either_model, monkeypatch, way, step):
    names = [("prefill", "decode")[step] if either_model.use_past else "whole"]
    method, calls = getattr(either_model, names[0]), []

    def spoil(*args):
        out = method(*args)
        calls.append(out)
        if either_model.use_past or len(calls) == step + 1:
            out[1, 7] = np.nan
        return out

    monkeypatch.setattr(either_model, names[0], spoil)
    with pytest.raises(FloatingPointError, match="prompt 1: the logits are not finite"):
        either_model.generate([[1, 2], [3]], max_new_tokens=4, eos_token_id=[], **{"top_k": 0, "top_p": 1.0, **way})
    assert len(calls) == (1 if either_model.use_past else step + 1)


def test_a_model_in_training_is_in_training_again_whatever_happens(build_tiny):
    class Broken(LogitsProcessor):
        def process_np(self, logits, sequence_ids):
            raise KeyError("no such thing")

    class Closed:
        def put(self, ids):
            raise OSError("closed")

        def end(self):
            raise AssertionError("there was nothing to end")

    processors = LogitsProcessorList()
    processors.append(Broken())
    model = build_tiny(use_past=True)
    for error, arguments in ((KeyError, {"logits_processor": processors}), (OSError, {"streamer": Closed()})):
        for is_training in (True, False):
            model.set_train(is_training)
            with pytest.raises(error):
                model.generate([1, 2], max_new_tokens=2, **arguments)
            assert model.training is is_training


@pytest.mark.parametrize("prompt, said", [
    ([1.5, 2], r"prompt 0: expected a list of ids, found \[1.5, 2\]"),
    ([[1], [[2]]], "prompt 1: expected a list of ids"),
    (["some", "text"], "prompt 0: expected a list of ids"), ([[1], [512]], "prompt 1: id 512 is outside"),
    ([[1], []], "prompt 1 is empty"), ([1] * 512, "prompt 0 has 512 tokens and the model holds 512"),
])
def test_what_is_no_prompt_is_refused(model, prompt, said):
    with pytest.raises(ValueError, match=said):
        model.generate(prompt, max_new_tokens=2)


def test_scores_and_logits_of_each_step_are_returned_where_asked_for(model):
    out = model.generate([[1, 2, 3], [4]], max_new_tokens=3, do_sample=True, top_k=0, top_p=1.0, temperature=0.5,
                         return_dict_in_generate=True, output_logits=True, output_scores=True, eos_token_id=[])
    assert [step.shape for step in out.logits] == [step.shape for step in out.scores] == [(2, 512)] * 3
    np.testing.assert_allclose(out.scores[0], out.logits[0] / 0.5, rtol=1e-6)


def test_mindformers_own_loop_drives_the_model_too(model):
    """Its infer API, which serving frameworks call, hands over its own block tables and slots."""
    prompts = np.array([[5, 9, 5, 511], [7, 301, 7, 20]], np.int32)
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=[], pad_token_id=511)
    ours = [ids.tolist() for ids in model.generate(prompts, **settings)]
    theirs = GenerationMixin.generate(model, prompts, **settings)
    assert [ids.tolist() for ids in theirs] == ours
