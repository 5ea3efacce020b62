"""Rotary tables: NTK factors, angles and LogN, against the reference's formulas."""
import math

import numpy as np
import pytest

from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.rotary import RotaryTables, ntk_alphas


def reference_alpha(length, window):
    return max(2 ** math.ceil(math.log(length / window, 2) + 1) - 1, 1)


def tables(**settings):
    return RotaryTables(QwenConfig(**{"hidden_size": 64, "num_heads": 4, "seq_length": 300, "train_seq_length": 64,
                                      **settings}))


@pytest.mark.parametrize("window, capacity", [(64, 300), (2048, 8192), (100, 100), (100, 101), (512, 100)])
def test_factor_of_every_length_is_the_references(window, capacity):
    alphas = ntk_alphas(window, capacity)
    thresholds = [window * 2 ** k for k in range(len(alphas) - 1)]
    for length in range(1, capacity + 1):
        assert alphas[sum(length > threshold for threshold in thresholds)] == reference_alpha(length, window)
    assert alphas[-1] == reference_alpha(capacity, window), "no factor that can't occur"


def test_rows_are_angles_of_each_factor():
    table = tables(theta=5000.0)
    for row, alpha in enumerate(ntk_alphas(64, 300)):
        base = 5000.0 * alpha ** (16 / 14)
        angles = np.outer(np.arange(300), base ** (-np.arange(0, 16, 2) / 16))
        part = slice(row * 300, (row + 1) * 300)
        np.testing.assert_allclose(table.cos.asnumpy()[part], np.cos(angles), atol=2e-5)
        np.testing.assert_allclose(table.sin.asnumpy()[part], np.sin(angles), atol=2e-5)


def test_logn_begins_beyond_the_training_length():
    logn = tables().logn.asnumpy()
    assert (logn[:64] == 1).all()
    np.testing.assert_allclose(logn[64:], [math.log(i, 64) for i in range(65, 301)], rtol=1e-6)


def test_nothing_is_stretched_where_it_is_off_or_can_not_occur():
    assert tables(use_dynamic_ntk=False).thresholds is None
    assert tables(use_logn_attn=False).logn is None
    short = tables(seq_length=64)
    assert short.thresholds is None and short.logn is None
