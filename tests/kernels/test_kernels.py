"""
The elementary operations of `portable` against their definitions in numpy, float64; and of every other set that this
machine can run, what it has of its own against `portable`.

Inputs are random over shapes that tend to break kernels: one token, odd head counts, ragged lengths, half-full
blocks, blocks in any order. Tolerance: float32 rounding of sums of the size in question.
"""
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from helpers.kernels import TOLERANCE, Layers, assert_same, compare_whole, layer_inputs, linear_weights, make_kernels
from qwen_mindspore.checkpoint.packing import Quantization, dequantize
from qwen_mindspore.kernels import runnable_kernels
from qwen_mindspore.kernels.weights import Kind, Weights, packed_kind
from qwen_mindspore.model.config import QwenConfig

RAGGED = [[1], [5], [17], [3, 16, 1], [33, 4, 18, 2, 31], [100, 32]]
RESUMED = [([9], [1]), ([17], [16]), ([16, 5], [12, 5]), ([33, 18, 7, 40], [1, 18, 3, 39])]  # lengths, tokens to come
HEADS = [(1, 16), (3, 64), (5, 128), (4, 18)]


def run(function, *inputs):
    out = function(*(x if isinstance(x, (float, tuple, Parameter, Weights, type(None))) else Tensor(x) for x in inputs))
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
    weights = Weights(Kind.FLOAT32, Tensor(weight), Tensor(bias) if has_bias else None)
    np.testing.assert_allclose(run(make_kernels("portable").linear, x, weights), expected, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs, outputs, group_size", [(64, 192, 32), (100, 33, 16), (48, 1, -1), (34, 5, 64)])
@pytest.mark.parametrize("reordered, has_bias", [(True, False), (False, True)])
def test_quantized_linear(random, bits, inputs, outputs, group_size, reordered, has_bias):
    """Groups that divide the inputs, and don't; one group; fewer inputs than a group."""
    kernels = make_kernels("portable")
    quantization = Quantization(bits, group_size, desc_act=reordered, sym=False)
    generator = np.random.default_rng(1)
    shapes = quantization.shapes(outputs, inputs)
    weight = generator.integers(0, 256, shapes["weight"]).astype(np.uint8)
    zeros = generator.integers(0, 2 ** bits, shapes["zeros"]).astype(np.uint8)
    scales = (generator.uniform(0.5, 1, shapes["scales"]) / 2 ** bits).astype(np.float32)
    order = generator.permutation(inputs).astype(np.int32) if reordered else None
    x, bias = random(5, inputs), random(outputs) if has_bias else None
    whole = dequantize(weight, scales, zeros, bits, group_size, order)
    expected = x.astype(np.float64) @ whole.T + (bias if has_bias else 0)
    weight, scales, zeros = map(Tensor, kernels.prepare_quantized(quantization, weight, scales, zeros))
    bias, order = (part if part is None else Tensor(part) for part in (bias, order))
    weights = Weights(packed_kind(bits), weight, bias, quantization, scales, zeros, order)
    np.testing.assert_allclose(run(kernels.linear, x, weights), expected, atol=2e-4)


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

    def last(self, queries):
        """Which of all tokens are the last ones of each sequence."""
        return self.positions >= (self.lengths - queries)[self.rows]

    def chosen(self, chosen):
        """
        Tables, lengths, queries, positions and rows of a prefill of the chosen tokens, before which others of their
        sequences may be cached.
        """
        sequences, rows, queries = np.unique(self.rows[chosen], return_inverse=True, return_counts=True)
        positions = self.positions[chosen]
        lengths = positions[np.cumsum(queries) - 1] + 1
        return [Tensor(x.astype(np.int32)) for x in (self.tables[sequences], lengths, queries, positions, rows)]

    def write(self, chosen=slice(None)):  # noqa: B008  nobody can alter a slice
        return self.kernels.cache_write(Tensor(np.concatenate(self.keys)[chosen]),
                                        Tensor(np.concatenate(self.values)[chosen]),
                                        self.caches, Tensor(self.slots[chosen]))


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS[:2])
def test_prefill_attention(random, lengths, heads, size, block_size):
    case = PagedCase("portable", lengths, heads, size, block_size, random)
    query = [random(length, heads, size) for length in lengths]
    layout = case.kernels.prefill_layout(Tensor(case.tables), Tensor(case.lengths), None, Tensor(case.positions),
                                         Tensor(case.rows))
    actual = case.kernels.prefill_attention(*(Tensor(np.concatenate(x)) for x in (query, case.keys, case.values)),
                                            case.write(), layout).asnumpy()
    expected = np.concatenate([softmax_attention(q, k, v, np.tri(len(q), dtype=bool))
                               for q, k, v in zip(query, case.keys, case.values)])
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths, queries", RESUMED)
def test_prefill_attention_of_sequences_whose_beginning_is_cached(random, lengths, queries, block_size):
    case = PagedCase("portable", lengths, 3, 18, block_size, random)
    chosen = case.last(queries)
    query = random(sum(queries), 3, 18)
    layout = case.kernels.prefill_layout(*case.chosen(chosen))
    actual = case.kernels.prefill_attention(Tensor(query), Tensor(np.concatenate(case.keys)[chosen]),
                                            Tensor(np.concatenate(case.values)[chosen]), case.write(), layout).asnumpy()
    of_each = np.split(query, np.cumsum(queries)[:-1])
    expected = np.concatenate([softmax_attention(q, k, v, np.tri(len(k), dtype=bool)[-len(q):])
                               for q, k, v in zip(of_each, case.keys, case.values)])
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


def to_8_bits(x):
    """x [T, H, D] of one sequence, and the levels [T, H, D], scales and zeros [H] that it has in numpy."""
    high, low = x.max((0, 2)), x.min((0, 2))
    scale = (high - low) / np.float32(255)
    zero = -low / scale
    return (x / scale[:, None] + zero[:, None]).clip(0, 255).astype(np.uint8), scale, zero


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS[:2])
def test_8_bit_cache(random, lengths, heads, size):
    """What one call writes for a sequence shares a scale for each head; in decoding that is one token."""
    case = PagedCase("portable", lengths, heads, size, 16, random)
    kernels = make_kernels("portable", heads, size, 16, num_blocks=40, use_cache_quantization=True)
    caches = tuple(Parameter(Tensor(np.zeros((40 * 16, width), dtype)), name=name) for name, width, dtype in (
        ("k", heads * size, np.uint8), ("v", heads * size, np.uint8), ("ks", 2 * heads, np.float32),
        ("vs", 2 * heads, np.float32)))
    keys, values = np.concatenate(case.keys), np.concatenate(case.values)

    written = kernels.cache_write(*map(Tensor, (keys, values)), caches,
                                  *map(Tensor, (case.slots, case.rows, case.lengths)))
    for actual, expected in zip(kernels._read(written, Tensor(case.slots[None])), (case.keys, case.values)):
        whole = []
        for x in expected:
            levels, scale, zero = to_8_bits(x)
            whole.append(scale[:, None] * (levels - zero[:, None]))
        # The last bit of float32 decides about a number on the edge of a level: a few may be off by one.
        error = np.abs(actual.asnumpy()[0] - np.concatenate(whole)) / max(np.ptp(x) / 255 for x in expected)
        assert error.max() < 1.01 and (error > 0.01).mean() < 0.01

    last = np.cumsum(lengths) - 1
    written = kernels.cache_write(*map(Tensor, (keys[last], values[last])), caches, Tensor(case.slots[last]))
    read = kernels._read(written, Tensor(case.slots[None, last]))[0].asnumpy()[0]
    assert np.all(np.abs(read - keys[last]) <= np.ptp(keys[last], -1)[..., None] / 255 * 1.01)


def test_a_head_that_is_all_one_number_survives_8_bits():
    kernels = make_kernels("portable", 2, 16, use_cache_quantization=True)
    x = np.concatenate((np.full((1, 1, 16), -3.25), np.zeros((1, 1, 16))), 1).astype(np.float32)
    levels, scales = kernels._to_8_bits(Tensor(x), None, None)
    read = kernels._from_8_bits(levels[None], scales, Tensor(np.zeros((1, 1), np.int32)), (1, 1, 2, 16))
    np.testing.assert_array_equal(read.asnumpy()[0], x)


def test_writing_leaves_other_slots_alone(random):
    case = PagedCase("portable", [3, 9], 4, 16, 4, random)
    before = case.caches[0].asnumpy().copy()
    case.write()
    after = case.caches[0].asnumpy()
    changed = (before != after).reshape(40 * 4, -1).any(-1)
    assert sorted(np.flatnonzero(changed)) == sorted(case.slots)


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
    assert_same(other.linear(x, other.bind(weights)), portable.linear(x, weights))


@pytest.mark.parametrize("kind, dtype", [(Kind.FLOAT16, ms.float16), (Kind.BFLOAT16, ms.bfloat16)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize("inputs, outputs", [(64, 96), (100, 33), (7, 1)])
def test_own_linear_of_16_bit_weights(other_set, random, kind, dtype, tokens, inputs, outputs):
    """They are widened, which is exact."""
    portable, other = (make_kernels(name) for name in ("portable", other_set))
    weight = Tensor(random(outputs, inputs) * 10.0 ** np.linspace(-7, 1, inputs), dtype)  # denormal ones, too
    x, weights = Tensor(random(tokens, inputs)), Weights(kind, weight)
    wide = Weights(Kind.FLOAT32, weight.astype(ms.float32))
    assert_same(other.linear(x, other.bind(weights)), portable.linear(x, wide))
    assert_same(portable.linear(x, weights), portable.linear(x, wide))


@pytest.mark.parametrize("heads, size", HEADS)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 7), (3, 40), (1, 100)])
def test_own_layer_on_whole_sequences(other_set, random, heads, size, batch, length):
    portable, other = (make_kernels(name, heads, size) for name in ("portable", other_set))
    compare_whole(portable, other, layer_inputs(random, batch * length, heads, size), (batch, length))


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS)
def test_own_layer_with_an_8_bit_cache(other_set, random, lengths, heads, size):
    case = PagedCase("portable", lengths, heads, size, 16, random)
    prompts, of_prompts = layer_inputs(random, sum(lengths), heads, size)
    steps, of_steps = layer_inputs(random, len(lengths), heads, size)
    outputs = []
    for name in ("portable", other_set):
        kernels = make_kernels(name, heads, size, 16, num_blocks=40, use_cache_quantization=True)
        caches = tuple(Parameter(Tensor(np.zeros((40 * 16, width), dtype)), name=name) for name, width, dtype in (
            ("k", heads * size, np.uint8), ("v", heads * size, np.uint8), ("ks", 2 * heads, np.float32),
            ("vs", 2 * heads, np.float32)))
        outputs.append([x.asnumpy() for x in (*prefill_and_decode(kernels, case, caches, prompts, of_prompts, steps,
                                                                  of_steps), *caches)])
    # The last bit of float32 decides about a number on the edge of a level: a few are off by one.
    for expected, actual in zip(*outputs):
        if expected.dtype == np.uint8:
            off = np.abs(expected.astype(int) - actual)
            assert off.max() <= 1 and (off > 0).mean() < 0.001
        else:
            np.testing.assert_allclose(actual, expected, atol=0.03)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden, width", [(64, 176), (36, 50)])
def test_own_layer_of_other_widths(other_set, random, tokens, hidden, width):
    portable, other = (make_kernels(name, 3, 16) for name in ("portable", other_set))
    compare_whole(portable, other, layer_inputs(random, tokens, 3, 16, hidden, width), (1, tokens))


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("heads, size", HEADS)
def test_own_layer_in_prefill_and_decoding(other_set, random, lengths, heads, size, block_size):
    cases = {name: PagedCase(name, lengths, heads, size, block_size, random)
             for name in ("portable", other_set)}
    prompts, of_prompts = layer_inputs(random, sum(lengths), heads, size)
    steps, of_steps = layer_inputs(random, len(lengths), heads, size)
    outputs = {}
    for name, case in cases.items():
        caches = tuple(Parameter(Tensor(np.zeros(cache.shape, np.float32)), name=cache.name) for cache in case.caches)
        both = prefill_and_decode(case.kernels, case, caches, prompts, of_prompts, steps, of_steps)
        outputs[name] = *both, caches[0].reshape(-1), caches[1].reshape(-1)
    for actual, expected in zip(outputs[other_set], outputs["portable"]):
        assert_same(actual, expected)


def prefill_and_decode(kernels, case, caches, prompts, of_prompts, steps, of_steps):
    """Outputs of a layer for all tokens of the case; then of one with other weights for each sequence's last again."""
    tables, counts = Tensor(case.tables), Tensor(case.lengths)
    (x, *weights), (step, *step_weights) = prompts, steps
    prefill = Layers(kernels, [weights], caches).prefill(x, of_prompts, Tensor(case.slots), tables, counts, counts,
                                                         Tensor(case.positions), Tensor(case.rows))
    last = Tensor(case.slots[np.cumsum(case.lengths) - 1])
    return prefill, Layers(kernels, [step_weights], caches).decode(step, of_steps, last, tables, counts)


def test_own_layers_run_in_order(other_set, random):
    (x, *first), rotation = layer_inputs(random, 14, 3, 16)
    (_, *second), _ = layer_inputs(random, 14, 3, 16)
    ids = Tensor(np.zeros((2, 7), np.int32))
    outputs = [[Layers(make_kernels(name, 3, 16), weights).whole(x, rotation, ids)
                for weights in ([first, second], [second, first])] for name in ("portable", other_set)]
    for expected, actual in zip(*outputs):
        assert_same(actual, expected)
    assert np.abs(outputs[0][0].asnumpy() - outputs[0][1].asnumpy()).max() > 0.1


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("lengths, queries", RESUMED)
@pytest.mark.parametrize("name", runnable_kernels())
def test_prefill_in_two_parts_computes_what_prefill_at_once_does(name, random, lengths, queries, block_size):
    case = PagedCase(name, lengths, 3, 64, block_size, random)
    inputs, rotation = layer_inputs(random, sum(lengths), 3, 64)
    later = case.last(queries)
    whole, whole_caches = prefilled(case, inputs, rotation, [np.ones_like(later)])
    parts, part_caches = prefilled(case, inputs, rotation, [~later, later] if not later.all() else [later])
    np.testing.assert_allclose(parts, whole[later], atol=TOLERANCE, rtol=1e-5)
    for actual, expected in zip(part_caches, whole_caches):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", runnable_kernels())
def test_a_sequence_may_share_blocks_that_another_one_fills_in_the_same_prefill(name, random):
    case = PagedCase(name, [13, 11], 3, 64, 4, random)
    inputs, rotation = layer_inputs(random, 24, 3, 64)
    same = case.positions < 8
    for x in (inputs[0], *rotation):  # both begin with the same eight tokens
        x[13:21] = x[:8]
    whole, _ = prefilled(case, inputs, rotation, [np.ones_like(same)])
    case.tables[1, :2] = case.tables[0, :2]
    own = ~same | (case.rows == 0)
    shared, _ = prefilled(case, inputs, rotation, [own])
    np.testing.assert_allclose(shared, whole[own], atol=TOLERANCE, rtol=1e-5)


def prefilled(case, inputs, rotation, parts):
    """Run a layer on parts of the tokens, one after the other: the last one's output, and the caches."""
    x, *weights = inputs
    caches = tuple(Parameter(Tensor(np.zeros(cache.shape, np.float32)), name=cache.name) for cache in case.caches)
    layers = Layers(case.kernels, [weights], caches)
    for chosen in parts:
        out = layers.prefill(Tensor(x.asnumpy()[chosen]), [Tensor(y.asnumpy()[chosen]) for y in rotation],
                             Tensor(case.slots[chosen]), *case.chosen(chosen))
    return out.asnumpy(), caches
