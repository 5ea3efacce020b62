"""
The elementary operations of `portable` against their definitions in numpy, float64; and of every other set that this
machine can run, what it has of its own against `portable`.

Inputs are random over shapes that tend to break kernels: one token, odd head counts, ragged lengths, half-full
blocks, blocks in any order. Tolerance: float32 rounding of sums of the size in question.
"""
import math

import numpy as np
import pytest
from mindspore import Parameter, Tensor
from qwen_config import QwenConfig
from qwen_kernels import build_kernels, runnable_kernels
from qwen_kernels.cpu import build_library
from qwen_kernels.portable import PortableKernels

TOLERANCE = 2e-5
RAGGED = [[1], [5], [17], [3, 16, 1], [33, 4, 18, 2, 31]]
HEADS = [(1, 16), (3, 64), (5, 128), (4, 18)]


def make_kernels(name, heads=4, size=16, block_size=16, num_blocks=64, **settings):
    return build_kernels(QwenConfig(kernels=name, hidden_size=heads * size, num_heads=heads, block_size=block_size,
                                    num_blocks=num_blocks, **settings))


@pytest.fixture(autouse=True)
def no_forced_set(monkeypatch):
    monkeypatch.delenv("QWEN_KERNELS", raising=False)


@pytest.fixture(params=[name for name in runnable_kernels() if name != "portable"])
def other_set(request):
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
def test_rms_norm(random, tokens, hidden, epsilon):
    x, weight = random(tokens, hidden) * 3, random(hidden)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide ** 2).mean(-1, keepdims=True) + epsilon) * weight
    actual = run(make_kernels("portable").rms_norm, x, weight, epsilon)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@pytest.mark.parametrize("tokens, inputs, outputs", [(1, 64, 192), (5, 100, 33), (16, 576, 48), (40, 17, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(random, tokens, inputs, outputs, has_bias):
    x, weight = random(tokens, inputs), random(outputs, inputs)
    bias = random(outputs) if has_bias else None
    expected = x.astype(np.float64) @ weight.T + (bias if has_bias else 0)
    weights = Tensor(weight), Tensor(bias) if has_bias else None
    np.testing.assert_allclose(run(make_kernels("portable").linear, x, weights), expected, atol=2e-4)


@pytest.mark.parametrize("heads, size", HEADS)
def test_rotary(random, heads, size):
    x, cos, sin = random(6, heads, size), random(6, size // 2), random(6, size // 2)
    low, high = x[..., :size // 2], x[..., size // 2:]
    c, s = cos[:, None], sin[:, None]
    expected = np.concatenate([low * c - high * s, high * c + low * s], -1)
    np.testing.assert_allclose(run(make_kernels("portable", heads, size).rotary, x, cos, sin), expected,
                               atol=TOLERANCE)


def test_swiglu_gates_by_its_second_input(random):
    up, gate = random(5, 88), random(5, 88)
    expected = up * (gate / (1 + np.exp(-gate.astype(np.float64))))
    np.testing.assert_allclose(run(make_kernels("portable").swiglu, up, gate), expected, atol=TOLERANCE)


@pytest.mark.parametrize("heads, size", HEADS)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 7), (3, 40)])
def test_causal_attention(random, heads, size, batch, length):
    query, key, value = (random(batch, length, heads, size) for _ in range(3))
    visible = np.tri(length, dtype=bool)
    expected = [softmax_attention(q, k, v, visible) for q, k, v in zip(query, key, value)]
    actual = run(make_kernels("portable", heads, size).causal_attention, query, key, value)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


class PagedCase:
    """Sequences of random keys and values, in blocks handed out in random order, and caches full of other things."""

    def __init__(self, name, lengths, heads, size, block_size, random):
        self.kernels = make_kernels(name, heads, size, block_size, num_blocks=40)
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
def test_prefill_attention(random, lengths, heads, size, block_size):
    case = PagedCase("portable", lengths, heads, size, block_size, random)
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
def test_decode_attention(random, lengths, heads, size, block_size):
    case = PagedCase("portable", lengths, heads, size, block_size, random)
    case.write()
    last = np.cumsum(lengths) - 1
    query = random(len(lengths), heads, size)
    layout = case.kernels.decode_layout(Tensor(case.tables), Tensor(case.lengths))
    actual = case.kernels.decode_attention(Tensor(query), case.write(last), layout).asnumpy()
    expected = [softmax_attention(q[None], k, v, np.ones((1, len(k)), bool))[0]
                for q, k, v in zip(query, case.keys, case.values)]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


def test_writing_leaves_other_slots_alone(random):
    case = PagedCase("portable", [3, 9], 4, 16, 4, random)
    before = case.caches[0].asnumpy().copy()
    case.write()
    after = case.caches[0].asnumpy()
    changed = (before != after).reshape(40 * 4, -1).any(-1)
    assert sorted(np.flatnonzero(changed)) == sorted(case.slots)


def linear_weights(random, outputs, inputs, bias=False):
    return (Tensor(random(outputs, inputs) / math.sqrt(inputs)), Tensor(random(outputs)) if bias else None)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual.asnumpy(), expected.asnumpy(), atol=TOLERANCE, rtol=1e-5)


# More tokens than a tile's, than a block's of tokens and than a vector's lanes; weights that don't fill a tile.
TOKENS = [1, 2, 3, 4, 5, 16, 17, 48, 50, 500]


@pytest.mark.parametrize("tokens", TOKENS)
def test_own_rms_norm(other_set, random, tokens):
    portable, other = (make_kernels(name, layer_norm_epsilon=1e-3) for name in ("portable", other_set))
    x, weight = Tensor(random(tokens, 100)), Tensor(random(100))
    assert_same(other.rms_norm(x, weight, 1e-3), portable.rms_norm(x, weight, 1e-3))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("inputs, outputs, bias", [(64, 96, False), (100, 33, True), (17, 1, False)])
def test_own_linear(other_set, random, tokens, inputs, outputs, bias):
    portable, other = (make_kernels(name) for name in ("portable", other_set))
    x, weights = Tensor(random(tokens, inputs)), linear_weights(random, outputs, inputs, bias)
    assert_same(other.linear(x, weights), portable.linear(x, weights))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden, width", [(64, 176), (36, 50)])
def test_own_feed_forward(other_set, random, tokens, hidden, width):
    portable, other = (make_kernels(name, heads=1, size=hidden) for name in ("portable", other_set))
    x, norm = Tensor(random(tokens, hidden)), (Tensor(random(hidden)), 1e-6)
    w1, w2, w3 = (linear_weights(random, *shape) for shape in ((width, hidden), (hidden, width), (width, hidden)))
    assert_same(other.feed_forward(x, norm, w1, w2, w3), portable.feed_forward(x, norm, w1, w2, w3))


def attention_inputs(random, tokens, heads, size):
    hidden = 40
    weights = [linear_weights(random, heads * size, hidden, bias=True) for _ in range(3)]
    weights.append(linear_weights(random, hidden, heads * size))
    rotation = tuple(Tensor(random(tokens, size // 2)) for _ in range(4))
    return Tensor(random(tokens, hidden)), (Tensor(random(hidden)), 1e-6), *weights, rotation


@pytest.mark.parametrize("heads, size", HEADS)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 7), (3, 40), (1, 100)])
def test_own_attention_whole(other_set, random, heads, size, batch, length):
    portable, other = (make_kernels(name, heads, size) for name in ("portable", other_set))
    inputs = attention_inputs(random, batch * length, heads, size)
    ids = Tensor(np.zeros((batch, length), np.int32))
    assert_same(other.attention_whole(*inputs, ids), portable.attention_whole(*inputs, ids))


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS)
def test_own_attention_in_prefill_and_decoding(other_set, random, lengths, heads, size, block_size):
    cases = {name: PagedCase(name, lengths, heads, size, block_size, random)
             for name in ("portable", other_set)}
    prompts = attention_inputs(random, sum(lengths), heads, size)
    steps = attention_inputs(random, len(lengths), heads, size)
    outputs = {}
    for name, case in cases.items():
        caches = tuple(Parameter(Tensor(np.zeros(cache.shape, np.float32)), name=cache.name) for cache in case.caches)
        tables, counts = Tensor(case.tables), Tensor(case.lengths)
        layout = case.kernels.prefill_layout(tables, counts, Tensor(case.positions), Tensor(case.rows))
        prefill = case.kernels.attention(*prompts, caches, Tensor(case.slots), layout, True)
        last = Tensor(case.slots[np.cumsum(lengths) - 1])  # the last token of each sequence is computed again
        decode = case.kernels.attention(*steps, caches, last, case.kernels.decode_layout(tables, counts), False)
        outputs[name] = prefill, decode, caches[0].reshape(-1), caches[1].reshape(-1)
    for actual, expected in zip(outputs[other_set], outputs["portable"]):
        assert_same(actual, expected)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="kernels: expected one of auto, .*portable.*found 'cuda'"):
        build_kernels(QwenConfig(kernels="cuda"))


def test_the_environment_forces_a_set(monkeypatch):
    monkeypatch.setenv("QWEN_KERNELS", "portable")
    assert type(make_kernels("auto")) is PortableKernels


def test_without_a_compiler_the_portable_set_is_taken_unless_the_other_is_forced(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert type(make_kernels("auto")) is PortableKernels
    with pytest.raises(ValueError, match="kernels cpu: no C.. compiler no-such-compiler: install"):
        make_kernels("cpu")


def test_the_library_is_built_once_and_again_for_another_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_library()
    built = first.stat().st_mtime_ns
    assert build_library() == first and first.stat().st_mtime_ns == built
    monkeypatch.setenv("CXX", "c++")
    assert build_library() != first
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".so", ".so"], "nothing half-built is left"
