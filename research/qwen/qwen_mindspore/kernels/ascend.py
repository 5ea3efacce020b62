"""
The kernel set of MindSpore's fused NPU primitives, for Atlas A2 (910B and later), with the portable composition of each
operation that no fused primitive serves: on Atlas training products (910A), in float32, at other head sizes.

What stands for what, and the documentation that says so (CANN: the operator library and Ascend Transformer Boost, 8.x
and 9.0, on hiascend.com):

    rms_norm            RmsNorm. float16, bfloat16, float32. MindSpore ops.rms_norm: Ascend. CANN aclnnRmsNorm: Atlas
                        A2, not Atlas training products (so MindFormers' check_rmsnorm_big_kernel_valid). Where it
                        follows a residual addition, MindSpore's back end makes one AddRmsNorm of the two.
    rotation of q, k    ApplyRotaryPosEmb, cos_format 2: a row of cos and sin [D] for each token. Its type check takes q
                        and k in float16 or bfloat16 with cos and sin in the same type or, as MindFormers' rotary_dtype
                        may have it and as is done here, in float32. CANN aclnnApplyRotaryPosEmb: Atlas A2, not Atlas
                        training products.
    cache_write         ReshapeAndCache. float16, bfloat16. Caches [blocks, block_size, H, D]. Its documentation says
                        [T, H, D] for the keys, its own shape check and MindFormers' calls [T, H * D].
    8-bit cache         The portable composition, attention included: PagedAttention's docstring has scales of an int8
                        cache for each channel, the same for all tokens, or for each token, the same for all heads.
    decode_attention    PagedAttention. float16, bfloat16. Transformer Boost, PagedAttentionOperation: block_size a
                        multiple of 16, head size up to 256, block_size * head size up to 128 * 128.
    prefill_attention   FlashAttentionScore, layout TH, as MindFormers calls it for packed prompts: the length of each
                        sequence (not their running sums) and a causal tile [128, 128]. float16, bfloat16, head sizes
                        that are multiples of 16. CANN aclnnFlashAttentionScore: Atlas A2, not Atlas training products.
                        Where sequences begin in the cache: PagedAttention with several queries a sequence, as
                        MindFormers calls it for chunk_prefill: the queries' lengths and an addend [T, span] in the
                        queries' type. Transformer Boost, PagedAttentionOperation, MASK_TYPE_SPEC: mask [num_tokens,
                        max_seq_len], Atlas A2.
    causal_attention    FlashAttentionScore in training, for its gradient: layout BSH, sparse_mode 2. Outside training,
                        without a cache, the portable composition.
    quantized linear    WeightQuantBatchMatmul. x float16 or bfloat16, scales and offsets in x's type, levels in int8 or
                        int4 (two in a byte, the first one low), [in, out] with scales [groups, out] for groups whose
                        size is a multiple of 32, [out, in] with scales [out] for one group; in and out up to 65535.
                        w = (level + offset) * scale, so that levels are stored less half of their number, and offset is
                        that half less the zero. Its bias is added apart: in bfloat16 CANN wants it in float32, which
                        MindSpore's type check refuses. CANN aclnnWeightQuantBatchMatmulV2: Atlas A2, not Atlas training
                        products. What it does not serve is dequantized at each step, by the portable composition.
    linear, swiglu      The portable MatMul, Add, SiLU and Mul. Swiglu wants both halves in one tensor, and joining them
                        moves more memory than SiLU and Mul do. CANN aclnnSilu: Atlas A2 and Atlas training products.

ReshapeAndCache, PagedAttention and ApplyRotaryPosEmb exist only with MindSpore's `infer_boost`, which MindFormers
switches on for predictions. MindSpore 2.9 ships its kernels for the 910B, none for the 910A, though Transformer Boost
lists Atlas training products for the first two. The attention kernels of `infer_boost` take the sequences' lengths from
the graph's input of the name `batch_valid_length`, and those of the queries from that of the name `q_seq_lens`.
"""
import mindspore as ms
import numpy as np
from mindformers.version_control import need_nz
from mindspore import Tensor, ops
from mindspore.ops.auto_generate import (
    ApplyRotaryPosEmb,
    FlashAttentionScore,
    PagedAttention,
    ReshapeAndCache,
    WeightQuantBatchMatmul,
)

from qwen_mindspore.checkpoint.packing import pack, unpack
from qwen_mindspore.kernels.portable import PortableKernels

__all__ = ["AscendKernels"]

SOCS = ("910A", "910B")
ALL_TOKENS = 2147483647
MOST_QUANTIZED = 65535  # inputs, and outputs, of WeightQuantBatchMatmul


class AscendKernels(PortableKernels):
    """
    See `kernels` for the operations, and this module for what stands for them. q, k and v travel from `norm_qkv`
    to `attend` as three tensors.

    Args:
        config (QwenConfig): `config.soc`, "910A" or "910B", if it is there, stands for the product that is found;
            nothing else is needed to build the NPU's graph on another machine.

    Raises:
        ValueError: Another `soc`.
    """

    # As MindFormers' build_context has it for predictions: see the module about infer_boost.
    jit_config = ms.JitConfig(jit_level="O0", infer_boost="on")

    def __init__(self, config):
        super().__init__(config)
        # MindFormers' need_nz: Atlas training and inference products. It touches no device.
        soc = getattr(config, "soc", None) or ("910A" if need_nz() else "910B")
        if soc not in SOCS:
            raise ValueError(f"soc: expected one of {', '.join(SOCS)}, found {soc!r}")
        self.dtype = config.compute_dtype
        self.fuses_norm = soc == "910B"
        self.fuses_attention = (soc == "910B" and self.dtype in (ms.float16, ms.bfloat16) and not self.has_8_bit_cache
                                and self.head_size % 16 == 0 and self.block_size % 16 == 0
                                and self.head_size <= 256 and self.block_size * self.head_size <= 128 * 128)
        self.faster_whole_prefill = self.fuses_attention
        # ApplyRotaryPosEmb has no gradient, and rotates q and k alike, where LogN scales q alone.
        scales_query = config.use_logn_attn and config.seq_length > config.train_seq_length
        self.fuses_rotary = self.fuses_attention and config.use_past and not scales_query
        self.fuses_quantized = soc == "910B" and self.dtype in (ms.float16, ms.bfloat16)
        if self.fuses_attention:
            self.apply_rotary = ApplyRotaryPosEmb(2)
            self.reshape_and_cache = ReshapeAndCache()
            self.paged_attention = PagedAttention(self.heads, self.scale, self.heads)
            self.packed_attention = FlashAttentionScore(self.heads, 1.0, self.scale, ALL_TOKENS, 0, 0, "TH", 0)
            self.whole_attention = FlashAttentionScore(self.heads, 1.0, self.scale, ALL_TOKENS, 0, 0, "BSH", 2)
            # As MindFormers' LowerTriangularMaskWithDynamic: an addend in float16, a mark in bfloat16.
            unseen = 1.0 if self.dtype == ms.bfloat16 else -10000.0
            self.packed_mask = Tensor(np.triu(np.full((128, 128), unseen, np.float32), 1), self.dtype)
            self.whole_mask = Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))

    def rms_norm(self, x, weight, epsilon):
        if self.fuses_norm:
            return ops.rms_norm(x, weight, epsilon)[0]
        return super().rms_norm(x, weight, epsilon)

    def bind(self, weights):
        """With levels in the layout of WeightQuantBatchMatmul, that primitive."""
        if weights.is_packed and weights.weight.dtype != ms.uint8:
            is_one_group = len(weights.scales.shape) == 1
            weights.own = WeightQuantBatchMatmul(False, is_one_group, 0 if is_one_group else weights.group_size)
        return weights

    def product(self, x, weights):
        if weights.own is None:
            return self.portable_product(x, weights)
        x = x if weights.order is None else ops.gather(x, weights.order, 1)
        product = weights.own(x, weights.weight, weights.scales, weights.zeros, None, None, None)
        return product if weights.bias is None else product + weights.bias

    def quantized_parameters(self, quantization, outputs, inputs):
        """What WeightQuantBatchMatmul takes: `zeros` are its offsets."""
        groups = self._fused_groups(quantization, outputs, inputs)
        if groups is None:
            return super().quantized_parameters(quantization, outputs, inputs)
        bits = quantization.bits
        rows, columns, scales = (outputs, inputs, (outputs,)) if groups == 1 else (inputs, outputs, (groups, outputs))
        return {"weight": ((rows, columns * bits // 8), ms.int8 if bits == 8 else ms.qint4x2),
                "scales": (scales, self.dtype), "zeros": (scales, self.dtype)}

    def prepare_quantized(self, quantization, weight, scales, zeros):
        """Signed levels; scales and offsets as WeightQuantBatchMatmul takes them."""
        bits, outputs = quantization.bits, len(weight)
        groups = self._fused_groups(quantization, outputs, weight.shape[1] * 8 // bits)
        if groups is None:
            return super().prepare_quantized(quantization, weight, scales, zeros)
        half = 2 ** (bits - 1)
        levels = unpack(weight, bits) ^ np.uint8(half)  # in two's complement, less half
        levels = pack(levels if groups == 1 else np.ascontiguousarray(levels.T), bits).view(np.int8)
        offsets = half - zeros.astype(np.float32)
        return (levels, scales[:, 0], offsets[:, 0]) if groups == 1 else (levels, scales.T, offsets.T)

    def _fused_groups(self, quantization, outputs, inputs):
        """The groups of a quantized linear that WeightQuantBatchMatmul serves, else None."""
        groups, size = quantization.groups(inputs), quantization.group_size
        fits = max(outputs, inputs) <= MOST_QUANTIZED and inputs % 2 == outputs % 2 == 0
        return groups if self.fuses_quantized and fits and (groups == 1 or size % 32 == 0) else None

    def cache_write(self, key, value, caches, slot_mapping, rows=None, lengths=None):
        if not self.fuses_attention:
            return super().cache_write(key, value, caches, slot_mapping, rows, lengths)
        key_cache, value_cache = caches
        written = self.reshape_and_cache(self._flat(key), self._flat(value), key_cache, value_cache, slot_mapping)
        return ops.depend(key_cache, written), ops.depend(value_cache, written)

    def causal_attention(self, query, key, value):
        if not (self.fuses_attention and self.training):
            return super().causal_attention(query, key, value)
        query, key, value = (ops.reshape(x, ops.shape(x)[:2] + (self.width,)) for x in (query, key, value))
        return self.whole_attention(query, key, value, None, None, None, self.whole_mask)[3]

    def prefill_attention(self, query, key, value, caches, layout):
        if not self.fuses_attention:
            return super().prefill_attention(query, key, value, caches, layout)
        if len(layout) > 1:
            block_tables, lengths, queries, mask = layout
            return self.paged_attention(self._flat(query), *caches, block_tables, lengths, None, None, mask, queries)
        (lengths,) = layout
        # The cache is not read here: without this dependence the graph would lose the writing of it.
        query = ops.depend(query, caches)
        return self.packed_attention(self._flat(query), self._flat(key), self._flat(value), None, None, None,
                                     self.packed_mask, None, lengths, lengths)[3]

    def decode_attention(self, query, caches, layout):
        if not self.fuses_attention:
            return super().decode_attention(query, caches, layout)
        key_cache, value_cache = caches
        block_tables, lengths = layout
        return self.paged_attention(self._flat(query), key_cache, value_cache, block_tables, lengths)

    def norm_qkv(self, x, norm, wq, wk, wv):
        """q, k and v [T, H * D] of the normalized x, not joined: that would only copy them twice."""
        y = self.rms_norm(x, *norm)
        return self.linear(y, wq), self.linear(y, wk), self.linear(y, wv)

    def cache_shape(self, config):
        """[blocks, block_size, H, D] for the fused primitives."""
        if not self.fuses_attention:
            return super().cache_shape(config)
        return config.cache_blocks, config.block_size, config.num_heads, config.kv_channels

    def prefill_layout(self, block_tables, lengths, queries, positions, rows):
        """(lengths,) for FlashAttentionScore, (block_tables, lengths, queries, mask [T, span]) for PagedAttention."""
        if not self.fuses_attention:
            return super().prefill_layout(block_tables, lengths, queries, positions, rows)
        if queries is None:
            return (lengths,)
        places, _ = self._context(block_tables)
        unseen = ops.cast(ops.expand_dims(places, 0) > ops.expand_dims(positions, 1), self.dtype)
        return block_tables, lengths, queries, unseen * -10000.0

    def decode_layout(self, block_tables, lengths):
        """(block_tables, lengths) for the fused primitive."""
        if not self.fuses_attention:
            return super().decode_layout(block_tables, lengths)
        return block_tables, lengths

    def _rotated(self, qkv, rotation):
        query, key, value = qkv
        cos, sin, query_cos, query_sin = rotation
        shape = (-1, self.heads, self.head_size)
        if not self.fuses_rotary or self.training:
            return (self.rotary(ops.reshape(query, shape), query_cos, query_sin),
                    self.rotary(ops.reshape(key, shape), cos, sin), ops.reshape(value, shape))
        # Each token has its own row of cos and sin, so that all of them count as one sequence of T.
        tokens = ops.cast(ops.ones_like(cos[:, :1]).sum(0), ms.int32)
        query, key = self.apply_rotary(query, key, ops.concat((cos, cos), -1), ops.concat((sin, sin), -1), tokens)
        return ops.reshape(query, shape), ops.reshape(key, shape), ops.reshape(value, shape)

    def _flat(self, x):
        """[T, H, D] -> [T, H * D]"""
        return ops.reshape(x, (-1, self.width))
