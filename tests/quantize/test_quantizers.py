"""Round to nearest and GPTQ on single weights, against the algorithms written down as slowly as they read."""
import numpy as np
import pytest
import torch

from qwen_mindspore.checkpoint.packing import Quantization, pack
from qwen_mindspore.checkpoint.packing import dequantize as dequantize_packed
from qwen_mindspore.quantize import quantizers
from qwen_mindspore.quantize.quantizers import dequantize, gptq, round_to_nearest

OUTPUTS, INPUTS, TOKENS = 12, 40, 300


@pytest.fixture
def weight():
    """A weight whose inputs differ in size."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(OUTPUTS, INPUTS, generator=generator) * torch.rand(INPUTS, generator=generator)


@pytest.fixture
def inputs():
    """Correlated inputs, some much larger than others."""
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(TOKENS, INPUTS, generator=generator) @ torch.randn(INPUTS, INPUTS, generator=generator)
    return mixed * torch.rand(INPUTS, generator=generator) ** 2


def hessian(inputs):
    return inputs.t() @ inputs / len(inputs)


def settings(bits=4, group_size=16, sym=True, desc_act=False):
    return Quantization(bits=bits, group_size=group_size, sym=sym, desc_act=desc_act)


def output_error(weight, quantized, inputs, group_size):
    return float(((inputs @ (dequantize(quantized, group_size) - weight).t()) ** 2).mean())


# The slow ones, in float64; scales are float16's

def slow_grid(low, high, bits, sym):
    top = 2 ** bits - 1
    if sym:
        high = max(high, -low)
        low = -high
    else:
        low = min(low, -high / (top - 1))
    scale = max(float(np.float16((high - low) / top)), 2.0 ** -24) if high > low else 1.0
    return scale, (top + 1) // 2 if sym else min(max(round(-low / scale), 1), top)


def slow_round(w, scale, zero, bits):
    level = min(max(round(w / scale) + zero, 0), 2 ** bits - 1)
    return level, (level - zero) * scale


def slow_scale(row, importance, bits, sym):
    """The scale and zero with the least weighed error, of those that cover all of the range, 98 % of it, ... 52 %."""
    found = []
    low, high = min(min(row), 0), max(max(row), 0)
    for percent in range(100, 50, -2):
        scale, zero = slow_grid(low * percent / 100, high * percent / 100, bits, sym)
        error = sum(i * (slow_round(w, scale, zero, bits)[1] - w) ** 2 for w, i in zip(row, importance))
        found.append((error, percent, scale, zero))
    return min(found, key=lambda entry: (entry[0], -entry[1]))[2:]


def slow_gptq(weight, hessian, settings, damp=0.01):
    """
    Optimal Brain Quantization in a fixed order: the inverse hessian of what is left is kept, and each quantized input's
    error goes to all that are left by its column in it (Frantar et al., arXiv:2210.17323, equations 2 and 3).
    """
    w, h, size = weight.double().numpy().copy(), hessian.double().numpy(), settings.group_size
    h = h + damp * np.diag(h).mean() * np.eye(INPUTS)
    importance = np.diag(h)
    order = np.argsort(-importance, kind="stable")
    inverse = np.linalg.inv(h)
    groups = [list(range(first, min(first + size, INPUTS))) for first in range(0, INPUTS, size)]
    levels, scales, zeros = (np.zeros((OUTPUTS, columns)) for columns in (INPUTS, len(groups), len(groups)))
    if not settings.desc_act:
        for g, group in enumerate(groups):
            for o in range(OUTPUTS):
                scales[o, g], zeros[o, g] = slow_scale(w[o, group], importance[group], settings.bits, settings.sym)
    for k, i in enumerate(order):
        g = (k if settings.desc_act else i) // size
        if settings.desc_act and k % size == 0:
            coming = order[k:k + size]
            for o in range(OUTPUTS):
                scales[o, g], zeros[o, g] = slow_scale(w[o, coming], importance[coming], settings.bits, settings.sym)
        left = order[k + 1:]
        for o in range(OUTPUTS):
            level, value = slow_round(w[o, i], scales[o, g], zeros[o, g], settings.bits)
            levels[o, i] = level
            w[o, left] -= (w[o, i] - value) / inverse[i, i] * inverse[i, left]
        inverse[np.ix_(left, left)] -= np.outer(inverse[left, i], inverse[i, left]) / inverse[i, i]
    order = [i for first in range(0, INPUTS, size) for i in sorted(order[first:first + size])]
    return levels, scales, zeros, order


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_is_optimal_brain_quantization_in_the_order_of_the_inputs_sizes(weight, inputs, bits, sym, desc_act,
                                                                            monkeypatch):
    # 24 and the last, shorter group lie across the limits of blocks.
    monkeypatch.setattr(quantizers, "BLOCK", 10)
    monkeypatch.setattr(quantizers, "ROWS", 5)
    wanted = settings(bits, 24, sym, desc_act)
    levels, scales, zeros, order = slow_gptq(weight, hessian(inputs), wanted)
    found = gptq(weight, hessian(inputs), wanted)
    np.testing.assert_array_equal(found.scales.numpy(), scales.astype(np.float16))
    np.testing.assert_array_equal(found.zeros.numpy(), zeros)
    np.testing.assert_array_equal(found.levels.numpy(), levels[:, order] if desc_act else levels)
    assert np.array_equal(found.order, order) if desc_act else found.order is None


@pytest.mark.parametrize("group_size", [8, 24, -1])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_keeps_the_outputs_closer_than_rounding(weight, inputs, bits, sym, group_size):
    rounded = output_error(weight, round_to_nearest(weight, settings(bits, group_size, sym)), inputs, group_size)
    for desc_act in (False, True):
        found = gptq(weight, hessian(inputs), settings(bits, group_size, sym, desc_act))
        assert output_error(weight, found, inputs, group_size) < 0.6 * rounded


@pytest.mark.parametrize("sym", [False, True])
def test_rounding_takes_the_nearest_of_the_levels_that_span_a_group(weight, sym):
    found = round_to_nearest(weight, settings(group_size=16, sym=sym))
    assert found.scales.dtype == torch.float16 and found.scales.shape == (OUTPUTS, 3)
    for o in range(OUTPUTS):
        for g, first in enumerate(range(0, INPUTS, 16)):
            row = weight[o, first:first + 16].tolist()
            scale, zero = slow_grid(min(*row, 0), max(*row, 0), 4, sym)
            assert (float(found.scales[o, g]), int(found.zeros[o, g])) == (scale, zero)
            assert found.levels[o, first:first + 16].tolist() == [slow_round(w, scale, zero, 4)[0] for w in row]


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits, group_size", [(4, 16), (8, 16), (4, -1)])
def test_what_is_packed_is_worth_what_quantizing_reckoned_with(weight, inputs, bits, group_size, desc_act):
    found = gptq(weight, hessian(inputs), settings(bits, group_size, desc_act=desc_act))
    order = None if found.order is None else found.order.numpy()
    packed = dequantize_packed(pack(found.levels.numpy(), bits), found.scales.numpy(), found.zeros.numpy(), bits,
                               group_size, order)
    np.testing.assert_array_equal(packed, dequantize(found, group_size).numpy())


def test_a_zero_is_never_0_for_autogptqs_files_hold_it_less_one(inputs):
    positive = torch.rand(OUTPUTS, INPUTS) + 1
    rounded = round_to_nearest(positive, settings(sym=False))
    assert (rounded.zeros == 1).all()
    assert (dequantize(rounded, 16) - positive).abs().max() < 0.51 * 2 / 14
    assert gptq(positive, hessian(inputs), settings(sym=False)).zeros.min() == 1
    assert (round_to_nearest(-positive, settings(sym=False)).zeros == 15).all()


def test_zeros_stay_zeros_and_tiny_weights_do_not_vanish_in_float16(inputs):
    weight = torch.zeros(OUTPUTS, INPUTS)
    weight[0] = 1e-9
    weight[1, :16] = 3e-7
    for found in (round_to_nearest(weight, settings()), gptq(weight, hessian(inputs), settings())):
        value = dequantize(found, 16)
        assert value.isfinite().all() and not value[2:].any()
        assert value[1, :16].min() > 1e-7


def test_an_input_that_was_never_seen_is_rounded(weight, inputs):
    inputs[:, 7] = 0
    found = gptq(weight, hessian(inputs), settings())
    rounded = [slow_round(w, float(scale), 8, 4)[0] for w, scale in zip(weight[:, 7].tolist(), found.scales[:, 0])]
    assert found.levels[:, 7].tolist() == rounded


def test_few_tokens_are_enough_for_an_answer(weight, inputs):
    found = gptq(weight, hessian(inputs[:3]), settings())
    assert output_error(weight, found, inputs[:3], 16) < output_error(weight, round_to_nearest(weight, settings()),
                                                                      inputs[:3], 16)


def test_what_can_not_be_quantized_is_refused(weight, inputs):
    with pytest.raises(ValueError, match="float16 can't hold their scale"):
        round_to_nearest(weight * 1e7, settings())
    broken = weight.clone()
    broken[3, 3] = torch.nan
    for quantize in (round_to_nearest, lambda w, s: gptq(w, hessian(inputs), s)):
        with pytest.raises(ValueError, match="no numbers"):
            quantize(broken, settings())
    inputs[0, 0] = torch.inf
    with pytest.raises(ValueError, match="activations that are no numbers"):
        gptq(weight, hessian(inputs), settings())
