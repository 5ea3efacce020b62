"""What other sets have of their own for quantized weights, against `portable`."""
import math

import numpy as np
import pytest
from mindspore import Tensor

from helpers.kernels import Layers, assert_same, layer_inputs, make_kernels
from qwen_mindspore.checkpoint.packing import Quantization
from qwen_mindspore.kernels.portable import PortableKernels
from qwen_mindspore.kernels.weights import Weights, packed_kind


def quantized_weights(random, kernels, quantization, outputs, inputs, has_bias=False):
    """The same for every set that is given, as that set holds it."""
    shapes = quantization.shapes(outputs, inputs)
    generator = np.random.default_rng(outputs)
    weight = generator.integers(0, 256, shapes["weight"], np.uint8)
    zeros = generator.integers(0, 2 ** quantization.bits, shapes["zeros"], np.uint8)
    if quantization.sym:
        zeros = np.full_like(zeros, 2 ** (quantization.bits - 1))
    scales = np.abs(random(*shapes["scales"])) / 2 ** quantization.bits / math.sqrt(inputs)
    order = Tensor(generator.permutation(inputs).astype(np.int32)) if quantization.desc_act else None
    bias = Tensor(random(outputs)) if has_bias else None
    held = [map(Tensor, own.prepare_quantized(quantization, weight.copy(), scales, zeros)) for own in kernels]
    return [own.bind(Weights(packed_kind(quantization.bits), weight, bias, quantization, scales, zeros, order))
            for own, (weight, scales, zeros) in zip(kernels, held)]


# Groups that fill vectors and that don't, the last one short, one for all; 4 bits and 8.
QUANTIZATIONS = [Quantization(bits, size, desc_act=desc_act, sym=sym) for bits, size, desc_act, sym in [
                     (4, 32, False, True), (4, 128, True, True), (4, -1, False, False), (4, 10, False, False),
                     (4, 48, True, False), (8, 32, True, False), (8, -1, False, True), (8, 7, False, False),
                     (8, 64, False, True)]]


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize("inputs, outputs, bias", [(64, 24, False), (200, 33, True)])
def test_own_quantized_linear(other_set, random, quantization, tokens, inputs, outputs, bias):
    kernels = [make_kernels(name) for name in ("portable", other_set)]
    x = Tensor(random(tokens, inputs))
    both = quantized_weights(random, kernels, quantization, outputs, inputs, bias)
    expected, actual = (own.linear(x, weights) for own, weights in zip(kernels, both))
    assert_same(actual, expected)


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("quantized", ["all", "some"])
def test_own_layer_of_quantized_linears(other_set, random, desc_act, tokens, quantized):
    quantization = Quantization(4, 16, desc_act=desc_act, sym=not desc_act)
    kernels = [make_kernels(name, 3, 16) for name in ("portable", other_set)]
    (x, attention, feed_forward), rotation = layer_inputs(random, tokens, 3, 16)
    layers = [[[half[0]] for half in (attention, feed_forward)] for _ in kernels]
    for half, linears in enumerate((attention, feed_forward)):
        for i, linear in enumerate(linears[1:]):
            both = [linear] * 2
            if quantized == "all" or i % 2:  # each with an order of its own
                both = quantized_weights(random, kernels, quantization, *linear.weight.shape, linear.bias is not None)
            for own, weights in zip(layers, both):
                own[half].append(weights)
    ids = Tensor(np.zeros((1, tokens), np.int32))
    expected, actual = (Layers(own, [layer]).whole(x, rotation, ids) for own, layer in zip(kernels, layers))
    assert_same(actual, expected)


def test_four_bits_in_odd_groups_are_left_to_the_portable_set(other_set):
    quantization = {"bits": 4, "group_size": 5}
    assert type(make_kernels("auto", quantization=quantization)) is PortableKernels
    with pytest.raises(ValueError, match="4-bit weights: expected an even group_size, found 5"):
        make_kernels(other_set, quantization=quantization)
