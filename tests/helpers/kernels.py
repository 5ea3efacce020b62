"""Kernel sets, weights and layers for them."""
import itertools
import math

import numpy as np
from mindspore import Tensor

from qwen_mindspore.kernels import build_kernels
from qwen_mindspore.kernels.weights import Kind, Weights
from qwen_mindspore.model.config import QwenConfig

TOLERANCE = 2e-5


def make_kernels(name, heads=4, size=16, block_size=16, num_blocks=64, **settings):
    return build_kernels(QwenConfig(kernels=name, hidden_size=heads * size, num_heads=heads, block_size=block_size,
                                    num_blocks=num_blocks, **settings))


def linear_weights(random, outputs, inputs, bias=False):
    weight = Tensor(random(outputs, inputs) / math.sqrt(inputs))
    return Weights(Kind.FLOAT32, weight, Tensor(random(outputs)) if bias else None)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual.asnumpy(), expected.asnumpy(), atol=TOLERANCE, rtol=1e-5)


def layer_inputs(random, tokens, heads, size, hidden=40, width=50):
    """x, and the weights of both halves of a layer; how to rotate."""
    attention = [(Tensor(random(hidden)), 1e-6)]
    attention += [linear_weights(random, heads * size, hidden, bias=True) for _ in range(3)]
    attention.append(linear_weights(random, hidden, heads * size))
    feed_forward = [(Tensor(random(hidden)), 1e-6)]
    feed_forward += [linear_weights(random, *shape) for shape in ((width, hidden), (hidden, width), (width, hidden))]
    rotation = [Tensor(random(tokens, size // 2)) for _ in range(4)]
    return (Tensor(random(tokens, hidden)), tuple(attention), tuple(feed_forward)), rotation


class Layers:
    """Layers as a kernel set runs them: all at once, or one after the other."""

    def __init__(self, kernels, weights, caches=()):
        self.kernels = kernels
        for _, *linears in itertools.chain(*weights):
            for linear in linears:
                kernels.bind(linear)
        self.layers = [(attention, feed_forward, caches) for attention, feed_forward in weights]
        self.table = kernels.layer_table(self.layers) if kernels.runs_at_once(weights) else None

    def whole(self, x, rotation, ids):
        if self.table:
            return self._done(self.kernels.layers_whole(x, self.table.address(refresh=True), rotation, ids))
        for attention, feed_forward, _ in self.layers:
            x = self.kernels.layer_whole(x, attention, feed_forward, rotation, ids)
        return x

    def prefill(self, x, rotation, slots, tables, lengths, queries, positions, rows):
        if self.table:
            return self._at_once(x, rotation, slots, tables, lengths, queries)
        layout = self.kernels.prefill_layout(tables, lengths, queries, positions, rows)
        return self._one_by_one(x, rotation, slots, layout, True)

    def decode(self, x, rotation, slots, tables, lengths):
        if self.table:
            return self._at_once(x, rotation, slots, tables, lengths, None)
        return self._one_by_one(x, rotation, slots, self.kernels.decode_layout(tables, lengths), False)

    def _at_once(self, x, rotation, *inputs):
        return self._done(self.kernels.layers(x, self.table.address(refresh=True), rotation, *inputs))

    def _one_by_one(self, x, rotation, slots, layout, prefill):
        for attention, feed_forward, caches in self.layers:
            x = self.kernels.layer(x, attention, feed_forward, rotation, caches, slots, layout, prefill)
        return x

    @staticmethod
    def _done(out):
        """Operations called outside a graph may run later, when the table is gone."""
        out.asnumpy()
        return out


def compare_whole(portable, other, inputs, shape):
    ((x, *weights), rotation), ids = inputs, Tensor(np.zeros(shape, np.int32))
    assert_same(*(Layers(kernels, [weights]).whole(x, rotation, ids) for kernels in (other, portable)))
