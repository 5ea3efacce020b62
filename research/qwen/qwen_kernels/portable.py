"""The kernel set of plain MindSpore operations: runs on every device, and defines what the other sets must compute."""
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

__all__ = ["PortableKernels"]

# Added to the score of a position that must not be seen. Finite, so that a row with nothing to see stays finite.
MASKED = -1e30


class PortableKernels(nn.Cell):
    """See `qwen_kernels` for the operations and their shapes."""

    def __init__(self, config):
        super().__init__()
        self.block_size = config.block_size
        self.heads = config.num_heads
        self.head_size = config.kv_channels
        self.scale = 1.0 / math.sqrt(config.kv_channels)
        self.offsets = Tensor(np.arange(config.block_size), ms.int32)
        self.matmul = ops.MatMul(transpose_b=True)
        self.scatter = ops.ScatterUpdate()
        self.score = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()

    def rms_norm(self, x, weight, epsilon):
        """x / rms(x) * weight. Source: Zhang & Sennrich, arXiv:1910.07467."""
        wide = ops.cast(x, ms.float32)
        normed = wide * ops.rsqrt(ops.mean(ops.square(wide), -1, True) + epsilon)
        return ops.cast(normed, x.dtype) * weight

    def linear(self, x, weight, bias):
        """x @ weight.T + bias."""
        product = self.matmul(x, weight)
        return product if bias is None else product + bias

    def rotary(self, x, cos, sin):
        """Rotate the pairs (i, i + D / 2) of each head. Source: Su et al., arXiv:2104.09864."""
        low, high = ops.chunk(ops.cast(x, ms.float32), 2, -1)
        cos, sin = ops.expand_dims(cos, 1), ops.expand_dims(sin, 1)
        return ops.cast(ops.concat((low * cos - high * sin, high * cos + low * sin), -1), x.dtype)

    def swiglu(self, up, gate):
        """up * silu(gate). Source: Shazeer, arXiv:2002.05202."""
        return up * ops.silu(gate)

    def causal_attention(self, query, key, value):
        """Every position of whole sequences sees itself and what stands before it."""
        positions = ops.cumsum(ops.ones_like(query[0, :, 0, 0]), 0)
        mask = ops.expand_dims(positions, 0) > ops.expand_dims(positions, 1)
        return self._attend(query, key, value, mask)

    @staticmethod
    def cache_shape(config):
        """One row a slot, so that writing and reading are plain row operations."""
        return config.cache_blocks * config.block_size, config.num_heads * config.kv_channels

    def cache_write(self, key, value, key_cache, value_cache, slot_mapping):
        """Rows of the caches, in place."""
        width = self.heads * self.head_size
        return (self.scatter(key_cache, slot_mapping, ops.reshape(key, (-1, width))),
                self.scatter(value_cache, slot_mapping, ops.reshape(value, (-1, width))))

    def _context(self, block_tables):
        """The positions that the tables span, [span], and the slots of each sequence's, [B, span]."""
        blocks = ops.cumsum(ops.ones_like(block_tables[0]), 0) - 1
        places = ops.reshape(ops.expand_dims(blocks, -1) * self.block_size + self.offsets, (-1,))
        slots = ops.expand_dims(ops.maximum(block_tables, 0), -1) * self.block_size + self.offsets
        return places, ops.reshape(slots, (ops.shape(block_tables)[0], -1))

    def prefill_layout(self, block_tables, lengths, positions, rows):
        """
        (slots [B, span] of the cache to read, mask [span, span], index [B, span] of the packed token at a place of
        the padded batch, index [T] of the place of a packed token in the flattened padded batch).
        """
        places, slots = self._context(block_tables)
        ends = ops.expand_dims(ops.cumsum(lengths, 0), -1)
        unpack = ops.minimum(ends - ops.expand_dims(lengths, -1) + places, ends - 1)
        pack = rows * ops.shape(places)[0] + positions
        mask = ops.expand_dims(places, 0) > ops.expand_dims(places, 1)
        return slots, mask, unpack, pack

    def prefill_attention(self, query, key, value, key_cache, value_cache, layout):
        """Unpack to a padded batch, attend to the cache, pack."""
        slots, mask, unpack, pack = layout
        padded = self._attend(ops.gather(query, unpack, 0), *self._read(key_cache, value_cache, slots), mask)
        return ops.gather(ops.reshape(padded, (-1, self.heads * self.head_size)), pack, 0)

    def decode_layout(self, block_tables, lengths):
        """(slots [B, span] of the cache to read, mask [B, 1, 1, span])."""
        places, slots = self._context(block_tables)
        mask = ops.expand_dims(places, 0) >= ops.expand_dims(lengths, -1)
        return slots, ops.expand_dims(ops.expand_dims(mask, 1), 1)

    def decode_attention(self, query, key_cache, value_cache, layout):
        """One query for each sequence."""
        slots, mask = layout
        out = self._attend(ops.expand_dims(query, 1), *self._read(key_cache, value_cache, slots), mask)
        return ops.reshape(out, (-1, self.heads * self.head_size))

    def _read(self, key_cache, value_cache, slots):
        """Keys and values [B, span, H, D] of the slots [B, span]."""
        shape = ops.shape(slots) + (self.heads, self.head_size)
        return (ops.reshape(ops.gather(key_cache, slots, 0), shape),
                ops.reshape(ops.gather(value_cache, slots, 0), shape))

    def _attend(self, query, key, value, mask):
        """softmax(q k / sqrt(D), masked) v, the softmax in float32: q [B, Q, H, D], k and v [B, K, H, D]."""
        query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
        scores = ops.cast(self.score(query, key), ms.float32) * self.scale + ops.cast(mask, ms.float32) * MASKED
        weights = ops.cast(ops.softmax(scores, -1), value.dtype)
        out = ops.transpose(self.weigh(weights, value), (0, 2, 1, 3))
        return ops.reshape(out, ops.shape(out)[:2] + (-1,))
