"""Choosing a token: numbers at the ends of their range, and logits that can't be trusted."""
from types import SimpleNamespace

import numpy as np
import pytest

from qwen_mindspore.generate.sampling import check_logits, next_token, penalize, sample
from qwen_mindspore.generate.settings import GenerationSettings

VOCABULARY = 2000
TINY = (1e-3, 1e-10, 1e-40, 1e-300, 5e-324)  # the last ones are none in float32


@pytest.fixture
def logits():
    return (np.random.default_rng(0).standard_normal(VOCABULARY) * 3).astype(np.float32)


def settings(**others):
    return SimpleNamespace(**{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **others})


@pytest.mark.parametrize("temperature, scale", [
    (temperature, scale) for temperature in TINY for scale in (1, 1e-30, 1e30) if scale / temperature > 100])
@pytest.mark.parametrize("others", [{}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 1}], ids=str)
def test_the_smaller_the_temperature_the_surer_the_likeliest_token(logits, temperature, scale, others):
    logits *= np.float32(scale)
    logits[7] = logits.max() + np.float32(scale)  # float32 tells it from the next
    for uniform in (0.0, 0.5, 1 - 1e-12):
        assert sample(logits, settings(temperature=temperature, **others), uniform) == 7


def test_equal_logits_are_drawn_alike_however_small_the_temperature():
    logits = np.full(8, -3, np.float32)
    logits[[2, 5]] = 40
    for temperature in TINY:
        draws = [sample(logits, settings(temperature=temperature), uniform) for uniform in (0.2, 0.7)]
        assert draws == [2, 5]


def test_the_larger_the_temperature_the_more_alike_the_tokens():
    logits = np.array([0, 5, -5, 9], np.float32)
    for temperature in (1e20, 1e40, 1e300):
        assert [sample(logits, settings(temperature=temperature), (i + 0.5) / 4) for i in range(4)] == [0, 1, 2, 3]


def test_logits_are_left_as_they_were(logits):
    before = logits.copy()
    for temperature in (0.5, 1e-40):
        sample(logits, settings(temperature=temperature, top_p=0.5), 0.5)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("others", [{"top_p": 1e-30}, {"top_p": 5e-324}, {"top_k": 1}], ids=str)
def test_the_smallest_choice_is_the_likeliest_token(logits, others):
    assert {sample(logits, settings(**others), uniform) for uniform in (0.0, 0.5, 1 - 1e-12)} == {logits.argmax()}


@pytest.mark.parametrize("others", [{"top_k": 10 ** 30}, {"top_k": VOCABULARY}], ids=str)
def test_the_largest_choice_is_all_tokens(logits, others):
    for uniform in (0.0, 0.3, 1 - 1e-12):
        assert sample(logits, settings(**others), uniform) == sample(logits, settings(), uniform)


def test_a_temperature_of_0_takes_the_likeliest_token(logits):
    drawn = settings(temperature=0.0)
    assert next_token(logits, drawn, None, "row") == next_token(logits, settings(do_sample=False), None, "row")
    assert not GenerationSettings(do_sample=True, temperature=0).draws


def defined_penalty(logits, ids, penalty):
    """The definition, with numbers of any size: Python's fractions."""
    from fractions import Fraction
    scores = [Fraction(float(logit)) for logit in logits]
    for token in set(ids):
        scores[token] = scores[token] * Fraction(penalty) if logits[token] < 0 else scores[token] / Fraction(penalty)
    return scores


@pytest.mark.parametrize("penalty", [1.3, 0.5, 1e-3, 1e3, 1e-5, 1e-40, 1e40, 1e-200, 1e200])
def test_a_penalty_of_any_size_keeps_the_order_of_its_definition(penalty):
    random = np.random.default_rng(1)
    logits = (random.standard_normal(50) * 9).astype(np.float32)
    ids = random.integers(0, 50, 30)
    expected = defined_penalty(logits, ids.tolist(), penalty)
    found = penalize(logits.copy(), ids, penalty)
    assert np.isfinite(found).all()
    assert int(found.argmax()) == max(range(50), key=expected.__getitem__)
    np.testing.assert_allclose(found, np.array([float(score) for score in expected]), rtol=1e-5)


@pytest.mark.parametrize("penalty", [5e-324, 1e-310, 1.7e308])
@pytest.mark.parametrize("way", [{}, {"do_sample": False}, {"top_p": 0.5}, {"temperature": 1e-40}], ids=str)
def test_a_penalty_beyond_all_measure_gives_a_token_still(logits, penalty, way):
    scores = penalize(logits.copy(), np.array([3, 4, 4]), penalty)
    assert 0 <= next_token(scores, settings(**way), lambda: 0.5, "row") < VOCABULARY


@pytest.mark.parametrize("penalty", [1.1, 1e-40])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_penalty_hides_no_logit_that_is_not_finite(logits, penalty, bad):
    logits[3] = bad
    with pytest.raises(FloatingPointError, match="row: the logits are not finite at token 5 of the answer: float16"):
        next_token(penalize(logits, np.array([3]), penalty), settings(), lambda: 0.5, "row", "token 5 of the answer")


def test_logits_that_are_all_the_same_come_of_what_has_overflowed(logits):
    check_logits(logits, "row")
    check_logits(np.zeros(1, np.float32), "row")
    logits[0] = logits[-1]
    check_logits(logits, "row")
    for value in (0, -np.inf, 3):
        with pytest.raises(FloatingPointError, match="row: the logits are all the same at token 2, .*not finite: "):
            check_logits(np.full(VOCABULARY, value, np.float32), "row", "token 2")
