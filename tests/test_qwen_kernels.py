"""
Every operation of every kernel set that this machine can run, against its definition in numpy, float64.

Inputs are random over shapes that tend to break kernels: one token, odd head counts, ragged lengths, half-full
blocks, blocks in any order. Tolerance: float32 rounding of sums of the size in question.
"""
import math

import numpy as np
import pytest
from mindspore import Parameter, Tensor
from qwen_config import QwenConfig
from qwen_kernels import KERNEL_SETS, build_kernels

TOLERANCE = 2e-5
RAGGED = [[1], [5], [17], [3, 16, 1], [33, 4, 18, 2, 31]]
HEADS = [(1, 16), (3, 64), (5, 128), (4, 18)]


def make_kernels(name, heads=4, size=16, block_size=16, num_blocks=64):
    return build_kernels(QwenConfig(kernels=name, hidden_size=heads * size, num_heads=heads, block_size=block_size,
                                    num_blocks=num_blocks))


@pytest.fixture(params=sorted(KERNEL_SETS))
def kernel_set(request):
    return request.param


@pytest.fixture
def random():
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape, np.float32)


def run(function, *inputs):
    out = function(*(x if isinstance(x, (float, tuple, Parameter, type(None))) else Tensor(x) for x in inputs))
    return out.asnumpy()


def softmax_attention(query, key, value, visible):
    """q [Q, H, D], k and v [K, H, D], visible [Q, K] -> [Q, H * D]."""
    scores = np.einsum("qhd,khd->hqk", query, key, dtype=np.float64) / math.sqrt(query.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, value).reshape(len(query), -1)


@pytest.mark.parametrize("tokens, hidden, epsilon", [(1, 64, 1e-6), (7, 576, 1e-5), (3, 1000, 1e-3)])
def test_rms_norm(kernel_set, random, tokens, hidden, epsilon):
    x, weight = random(tokens, hidden) * 3, random(hidden)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide ** 2).mean(-1, keepdims=True) + epsilon) * weight
    actual = run(make_kernels(kernel_set).rms_norm, x, weight, epsilon)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@pytest.mark.parametrize("tokens, inputs, outputs", [(1, 64, 192), (5, 100, 33), (16, 576, 48), (40, 17, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(kernel_set, random, tokens, inputs, outputs, has_bias):
    x, weight = random(tokens, inputs), random(outputs, inputs)
    bias = random(outputs) if has_bias else None
    expected = x.astype(np.float64) @ weight.T + (bias if has_bias else 0)
    weights = Tensor(weight), Tensor(bias) if has_bias else None
    np.testing.assert_allclose(run(make_kernels(kernel_set).linear, x, weights), expected, atol=2e-4)


@pytest.mark.parametrize("heads, size", HEADS)
def test_rotary(kernel_set, random, heads, size):
    x, cos, sin = random(6, heads, size), random(6, size // 2), random(6, size // 2)
    low, high = x[..., :size // 2], x[..., size // 2:]
    c, s = cos[:, None], sin[:, None]
    expected = np.concatenate([low * c - high * s, high * c + low * s], -1)
    np.testing.assert_allclose(run(make_kernels(kernel_set, heads, size).rotary, x, cos, sin), expected,
                               atol=TOLERANCE)


def test_swiglu_gates_by_its_second_input(kernel_set, random):
    up, gate = random(5, 88), random(5, 88)
    expected = up * (gate / (1 + np.exp(-gate.astype(np.float64))))
    np.testing.assert_allclose(run(make_kernels(kernel_set).swiglu, up, gate), expected, atol=TOLERANCE)


@pytest.mark.parametrize("heads, size", HEADS)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 7), (3, 40)])
def test_causal_attention(kernel_set, random, heads, size, batch, length):
    query, key, value = (random(batch, length, heads, size) for _ in range(3))
    visible = np.tri(length, dtype=bool)
    expected = [softmax_attention(q, k, v, visible) for q, k, v in zip(query, key, value)]
    actual = run(make_kernels(kernel_set, heads, size).causal_attention, query, key, value)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


class PagedCase:
    """Sequences of random keys and values, in blocks handed out in random order, and caches full of other things."""

    def __init__(self, kernel_set, lengths, heads, size, block_size, random):
        self.kernels = make_kernels(kernel_set, heads, size, block_size, num_blocks=40)
        self.lengths = np.array(lengths, np.int32)
        blocks = -(-self.lengths // block_size)
        order = iter(np.random.default_rng(1).permutation(40))
        self.tables = np.full((len(lengths), blocks.max()), -1, np.int32)
        for row, count in enumerate(blocks):
            self.tables[row, :count] = [next(order) for _ in range(count)]
        self.keys = [random(length, heads, size) for length in lengths]
        self.values = [random(length, heads, size) for length in lengths]
        self.positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
        self.rows = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
        self.slots = (self.tables[self.rows, self.positions // block_size] * block_size
                      + self.positions % block_size).astype(np.int32)
        shape = self.kernels.cache_shape(QwenConfig(hidden_size=heads * size, num_heads=heads, block_size=block_size,
                                                    num_blocks=40))
        self.caches = tuple(Parameter(Tensor(random(*shape)), name=name) for name in "kv")

    def write(self, chosen=slice(None)):
        return self.kernels.cache_write(Tensor(np.concatenate(self.keys)[chosen]),
                                        Tensor(np.concatenate(self.values)[chosen]),
                                        self.caches, Tensor(self.slots[chosen]))


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS[:2])
def test_prefill_attention(kernel_set, random, lengths, heads, size, block_size):
    case = PagedCase(kernel_set, lengths, heads, size, block_size, random)
    query = [random(length, heads, size) for length in lengths]
    layout = case.kernels.prefill_layout(*map(Tensor, (case.tables, case.lengths, case.positions, case.rows)))
    actual = case.kernels.prefill_attention(*(Tensor(np.concatenate(x)) for x in (query, case.keys, case.values)),
                                            case.write(), layout).asnumpy()
    expected = np.concatenate([softmax_attention(q, k, v, np.tri(len(q), dtype=bool))
                               for q, k, v in zip(query, case.keys, case.values)])
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS)
def test_decode_attention(kernel_set, random, lengths, heads, size, block_size):
    case = PagedCase(kernel_set, lengths, heads, size, block_size, random)
    case.write()
    last = np.cumsum(lengths) - 1
    query = random(len(lengths), heads, size)
    layout = case.kernels.decode_layout(Tensor(case.tables), Tensor(case.lengths))
    actual = case.kernels.decode_attention(Tensor(query), case.write(last), layout).asnumpy()
    expected = [softmax_attention(q[None], k, v, np.ones((1, len(k)), bool))[0]
                for q, k, v in zip(query, case.keys, case.values)]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


def test_writing_leaves_other_slots_alone(kernel_set, random):
    case = PagedCase(kernel_set, [3, 9], 4, 16, 4, random)
    before = case.caches[0].asnumpy().copy()
    case.write()
    after = case.caches[0].asnumpy()
    changed = (before != after).reshape(40 * 4, -1).any(-1)
    assert sorted(np.flatnonzero(changed)) == sorted(case.slots)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="kernels: expected one of auto, .*portable.*found 'cuda'"):
        build_kernels(QwenConfig(kernels="cuda"))
