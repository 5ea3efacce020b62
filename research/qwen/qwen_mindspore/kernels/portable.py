"""The kernel set of plain MindSpore operations: runs on every device, and defines what the other sets must compute."""
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from qwen_mindspore.checkpoint.packing import unpack
from qwen_mindspore.kernels.weights import Kind

__all__ = ["PortableKernels"]

# Added to the score of a position that must not be seen. Finite, so that a row with nothing to see stays finite.
MASKED = -1e30

# In a graph a member of an enumeration is no number.
CELL, INT4 = int(Kind.CELL), int(Kind.INT4)


class PortableKernels(nn.Cell):
    """See `kernels` for the operations and their shapes."""

    reads_whole_tables = True
    faster_whole_prefill = False
    jit_config = None

    def __init__(self, config):
        super().__init__()
        # A CPU's MindSpore has no bfloat16 product, and a float16 one that is ten times slower than float32.
        self.dtype = ms.float32 if ms.get_context("device_target") == "CPU" else config.compute_dtype
        self.block_size = config.block_size
        self.heads = config.num_heads
        self.head_size = config.kv_channels
        self.width = config.num_heads * config.kv_channels
        self.scale = 1.0 / math.sqrt(config.kv_channels)
        self.offsets = Tensor(np.arange(config.block_size), ms.int32)
        self.halves = Tensor(unpack(np.arange(256, dtype=np.uint8)[:, None], 4), ms.float32)  # of each byte
        self.matmul = ops.MatMul(transpose_b=True)
        self.scatter = ops.ScatterUpdate()
        self.has_8_bit_cache = config.use_cache_quantization
        self.segment_max = ops.UnsortedSegmentMax()
        self.score = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()

    # Elementary operations

    def rms_norm(self, x, weight, epsilon):
        """x / rms(x) * weight. Source: Zhang & Sennrich, arXiv:1910.07467."""
        wide = ops.cast(x, ms.float32)
        normed = wide * ops.rsqrt(ops.mean(ops.square(wide), -1, True) + epsilon)
        return ops.cast(normed, x.dtype) * weight

    def linear(self, x, weights):
        """
        x @ weight.T + bias, and what an adapter adds. The one place where kinds are told apart, besides `product`.
        """
        if weights.kind == CELL:
            return weights.cell(x)
        product = self.product(x, weights)
        return product if weights.adapter is None else product + weights.adapter(x)

    def product(self, x, weights):
        """x @ weight.T + bias, of weights that are there: what a kernel set replaces."""
        return self.portable_product(x, weights)

    # In a graph super() is of the class of self, and no class could extend one that calls it: hence the name.
    def portable_product(self, x, weights):
        """`product` of any kind."""
        if weights.is_packed:
            weight = self.dequantize(weights.weight, weights.scales, weights.zeros, weights.kind, weights.group_size)
            x = x if weights.order is None else ops.gather(x, weights.order, 1)
        else:
            weight = ops.cast(weights.weight, self.dtype)
        product = self.matmul(x, weight)
        return product if weights.bias is None else product + weights.bias

    def dequantize(self, weight, scales, zeros, kind, group_size):
        """
        Rows [R, inputs] of a quantized weight: the levels less their zeros, times their scales, computed in float32.
        Source: `checkpoint.packing.dequantize`.
        """
        inputs, groups = weight.shape[1] * (2 if kind == INT4 else 1), scales.shape[1]
        size = inputs if groups == 1 else group_size
        if kind == INT4:
            levels = ops.reshape(ops.gather(self.halves, ops.cast(weight, ms.int32), 0), (-1, inputs))
        else:
            levels = ops.cast(weight, ms.float32)
        scales, zeros = (ops.expand_dims(ops.cast(part, ms.float32), -1) for part in (scales, zeros))
        if groups * size == inputs:
            levels = ops.reshape(levels, (-1, groups, size))
        else:
            ones = ops.ones((size,), ms.float32)
            scales, zeros = (ops.reshape(part * ones, (-1, groups * size))[:, :inputs] for part in (scales, zeros))
        return ops.cast(ops.reshape((levels - zeros) * scales, (-1, inputs)), self.dtype)

    def rotary(self, x, cos, sin):
        """Rotate the pairs (i, i + D / 2) of each head. Source: Su et al., arXiv:2104.09864."""
        low, high = ops.chunk(ops.cast(x, ms.float32), 2, -1)
        cos, sin = ops.expand_dims(cos, 1), ops.expand_dims(sin, 1)
        return ops.cast(ops.concat((low * cos - high * sin, high * cos + low * sin), -1), x.dtype)

    def swiglu(self, up, gate):
        """up * silu(gate). Source: Shazeer, arXiv:2002.05202."""
        return up * ops.silu(gate)

    def cache_write(self, key, value, caches, slot_mapping, rows=None, lengths=None):
        """Rows of the caches, in place."""
        if self.has_8_bit_cache:
            key, key_scales = self._to_8_bits(key, rows, lengths)
            value, value_scales = self._to_8_bits(value, rows, lengths)
            written = ()
            for cache, new in zip(caches, (key, value, key_scales, value_scales)):
                written += (self.scatter(cache, slot_mapping, new),)
            return written
        key_cache, value_cache = caches
        return (self.scatter(key_cache, slot_mapping, ops.reshape(key, (-1, self.width))),
                self.scatter(value_cache, slot_mapping, ops.reshape(value, (-1, self.width))))

    def causal_attention(self, query, key, value):
        """Every position of whole sequences sees itself and what stands before it."""
        positions = ops.cumsum(ops.ones_like(query[0, :, 0, 0]), 0)
        mask = ops.expand_dims(positions, 0) > ops.expand_dims(positions, 1)
        return self._softmax_attention(query, key, value, mask)

    def prefill_attention(self, query, key, value, caches, layout):
        """Unpack to a padded batch, attend to the cache, pack."""
        slots, mask, unpack, pack = layout[:4]
        padded = self._softmax_attention(ops.gather(query, unpack, 0), *self._read(caches, slots), mask)
        return ops.gather(ops.reshape(padded, (-1, self.width)), pack, 0)

    def decode_attention(self, query, caches, layout):
        """One query for each sequence."""
        slots, mask = layout
        out = self._softmax_attention(ops.expand_dims(query, 1), *self._read(caches, slots), mask)
        return ops.reshape(out, (-1, self.width))

    # The steps of a layer's halves

    def norm_qkv(self, x, norm, wq, wk, wv):
        """q, k and v of the normalized x."""
        y = self.rms_norm(x, *norm)
        return ops.concat((self.linear(y, wq), self.linear(y, wk), self.linear(y, wv)), -1)

    def attend(self, qkv, rotation, caches, slot_mapping, layout, prefill):
        """Rotate, write to the cache, attend."""
        query, key, value = self._rotated(qkv, rotation)
        if prefill and self.has_8_bit_cache:
            caches = self.cache_write(key, value, caches, slot_mapping, *layout[4:])
        else:
            caches = self.cache_write(key, value, caches, slot_mapping)
        if prefill:
            return self.prefill_attention(query, key, value, caches, layout)
        return self.decode_attention(query, caches, layout)

    def attend_whole(self, qkv, rotation, input_ids):
        """Rotate and attend, without a cache."""
        shape = ops.shape(input_ids) + (self.heads, self.head_size)
        query, key, value = self._rotated(qkv, rotation)
        out = self.causal_attention(ops.reshape(query, shape), ops.reshape(key, shape), ops.reshape(value, shape))
        return ops.reshape(out, (-1, self.width))

    def linear_add(self, x, weights, residual):
        """residual + linear(x)."""
        return residual + self.linear(x, weights)

    def norm_swiglu(self, x, norm, w1, w3):
        """The inner half of the feed-forward."""
        y = self.rms_norm(x, *norm)
        return self.swiglu(self.linear(y, w1), self.linear(y, w3))

    # The two halves of a layer

    def attention(self, x, norm, wq, wk, wv, wo, rotation, caches, slot_mapping, layout, prefill):
        """x + attention(norm(x)), with the cache."""
        out = self.attend(self.norm_qkv(x, norm, wq, wk, wv), rotation, caches, slot_mapping, layout, prefill)
        return self.linear_add(out, wo, x)

    def attention_whole(self, x, norm, wq, wk, wv, wo, rotation, input_ids):
        """x + attention(norm(x)), without a cache."""
        return self.linear_add(self.attend_whole(self.norm_qkv(x, norm, wq, wk, wv), rotation, input_ids), wo, x)

    def feed_forward(self, x, norm, w1, w2, w3):
        """x + feed_forward(norm(x))."""
        return self.linear_add(self.norm_swiglu(x, norm, w1, w3), w2, x)

    # A layer

    def layer(self, x, attention, feed_forward, rotation, caches, slot_mapping, layout, prefill):
        """Its halves, with the cache."""
        x = self.attention(x, *attention, rotation, caches, slot_mapping, layout, prefill)
        return self.feed_forward(x, *feed_forward)

    def layer_whole(self, x, attention, feed_forward, rotation, input_ids):
        """Its halves, without a cache."""
        return self.feed_forward(self.attention_whole(x, *attention, rotation, input_ids), *feed_forward)

    # What belongs to them

    def bind(self, weights):
        """Nothing to keep with them."""
        return weights

    def runs_at_once(self, layers):
        """No operation takes all layers."""
        return False

    def quantized_parameters(self, quantization, outputs, inputs):
        """As in a checkpoint, the scales in float32, which holds them whatever their type was."""
        shapes = quantization.shapes(outputs, inputs)
        return {"weight": (shapes["weight"], ms.uint8), "scales": (shapes["scales"], ms.float32),
                "zeros": (shapes["zeros"], ms.uint8)}

    def prepare_quantized(self, quantization, weight, scales, zeros):
        """As they are."""
        return weight, scales, zeros

    @staticmethod
    def cache_shape(config):
        """One row a slot, so that writing and reading are plain row operations."""
        return config.cache_blocks * config.block_size, config.num_heads * config.kv_channels

    @staticmethod
    def cache_scales_shape(config):
        """A slot's scales of each head, then its zeros of each."""
        return config.cache_blocks * config.block_size, 2 * config.num_heads

    def prefill_layout(self, block_tables, lengths, queries, positions, rows):
        """
        (slots [B, span] of the cache to read, mask [span, span], index [B, span] of the packed token at a position of
        the padded batch, or of any where there is none, index [T] of the place of a packed token in the flattened
        padded batch), and with an 8-bit cache rows and lengths.
        """
        places, slots = self._context(block_tables)
        ends = ops.expand_dims(ops.cumsum(lengths if queries is None else queries, 0), -1)
        unpack = ops.maximum(ops.minimum(ends - ops.expand_dims(lengths, -1) + places, ends - 1), 0)
        pack = rows * ops.shape(places)[0] + positions
        mask = ops.expand_dims(places, 0) > ops.expand_dims(places, 1)
        layout = slots, mask, unpack, pack
        return layout + (rows, lengths) if self.has_8_bit_cache else layout

    def decode_layout(self, block_tables, lengths):
        """(slots [B, span] of the cache to read, mask [B, 1, 1, span])."""
        places, slots = self._context(block_tables)
        mask = ops.expand_dims(places, 0) >= ops.expand_dims(lengths, -1)
        return slots, ops.expand_dims(ops.expand_dims(mask, 1), 1)

    def _context(self, block_tables):
        """The positions that the tables span, [span], and the slots of each sequence's, [B, span]."""
        blocks = ops.cumsum(ops.ones_like(block_tables[0]), 0) - 1
        places = ops.reshape(ops.expand_dims(blocks, -1) * self.block_size + self.offsets, (-1,))
        slots = ops.expand_dims(ops.maximum(block_tables, 0), -1) * self.block_size + self.offsets
        return places, ops.reshape(slots, (ops.shape(block_tables)[0], -1))

    def _rotated(self, qkv, rotation):
        """Rotated q and k, and v, [T, H, D] each."""
        cos, sin, query_cos, query_sin = rotation
        heads = ops.reshape(qkv, (-1, 3, self.heads, self.head_size))
        return (self.rotary(heads[:, 0], query_cos, query_sin), self.rotary(heads[:, 1], cos, sin), heads[:, 2])

    def _read(self, caches, slots):
        """Keys and values [B, span, H, D] of the slots [B, span]."""
        shape = ops.shape(slots) + (self.heads, self.head_size)
        key, value = ops.gather(caches[0], slots, 0), ops.gather(caches[1], slots, 0)
        if self.has_8_bit_cache:
            return self._from_8_bits(key, caches[2], slots, shape), self._from_8_bits(value, caches[3], slots, shape)
        return ops.reshape(key, shape), ops.reshape(value, shape)

    def _to_8_bits(self, x, rows, lengths):
        """
        x [T, H, D] as levels [T, H * D] uint8, with scales and zeros [T, 2 * H]: x is about scale * (level - zero). The
        tokens of one sequence in this call share a head's; without `rows` each token has its own.

        Source: quantize_cache_v in https://huggingface.co/Qwen/Qwen-7B/blob/main/modeling_qwen.py
        """
        x = ops.cast(x, ms.float32)
        high, low = ops.amax(x, -1), ops.amin(x, -1)
        if rows is not None:
            sequences = ops.shape(lengths)[0]
            high = ops.gather(self.segment_max(high, rows, sequences), rows, 0)
            low = -ops.gather(self.segment_max(-low, rows, sequences), rows, 0)
        span = high - low
        # What is all one number has no span: its level is 0, and its zero is that number, with the opposite sign.
        scale = ops.select(span > 0, span / 255.0, ops.ones_like(span))
        zero = -low / scale
        levels = x / ops.expand_dims(scale, -1) + ops.expand_dims(zero, -1)
        # Not rounded, but cut off: as the reference does it.
        levels = ops.cast(ops.clamp(levels, 0.0, 255.0), ms.uint8)
        return ops.reshape(levels, (-1, self.width)), ops.concat((scale, zero), -1)

    def _from_8_bits(self, levels, scales, slots, shape):
        """[B, span, H, D] of levels [B, span, H * D] uint8 and the scales of all slots."""
        scale, zero = ops.chunk(ops.expand_dims(ops.gather(scales, slots, 0), -1), 2, 2)
        return ops.cast(scale * (ops.reshape(ops.cast(levels, ms.float32), shape) - zero), self.dtype)

    def _softmax_attention(self, query, key, value, mask):
        """softmax(q k / sqrt(D), masked) v, the softmax in float32: q [B, Q, H, D], k and v [B, K, H, D]."""
        query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
        scores = ops.cast(self.score(query, key), ms.float32) * self.scale + ops.cast(mask, ms.float32) * MASKED
        weights = ops.cast(ops.softmax(scores, -1), value.dtype)
        out = ops.transpose(self.weigh(weights, value), (0, 2, 1, 3))
        return ops.reshape(out, ops.shape(out)[:2] + (-1,))
