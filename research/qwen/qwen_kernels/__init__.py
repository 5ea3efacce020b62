"""
Kernel sets: the operations that a Qwen is made of, one implementation for each kind of machine.

The model calls these and no other heavy operation. T is the number of tokens of one call, whatever sequences they
belong to: a batch of prompts is packed one behind the other, so no work is spent on padding. H heads of size D.

    rms_norm(x, weight, epsilon)            x [T, hidden] -> [T, hidden] in x's type, computed in float32
    linear(x, weight, bias)                 x [T, in], weight [out, in], bias [out] or None -> [T, out]
    rotary(x, cos, sin)                     x [T, H, D], cos and sin [T, D / 2] float32 -> [T, H, D] in x's type,
                                            rotated in float32; pairs are (i, i + D / 2). LogN scales the query, and
                                            rotation is linear, so it comes folded into the query's cos and sin
    swiglu(up, gate)                        [T, width] each -> up * silu(gate)
    causal_attention(query, key, value)     [B, S, H, D] each -> [B, S, H * D]: whole sequences, without a cache
    cache_shape(config)                     shape of the key cache, and of the value cache, of one layer
    cache_write(key, value, key_cache, value_cache, slot_mapping)
                                            key and value [T, H, D] go to rows slot_mapping [T] int32 of the caches
                                            (Parameters, in place) -> the two caches as the reading ops must take
                                            them, which keeps the order of writing and reading
    prefill_layout(block_tables, lengths, positions, rows)
                                            what one prefill's layers share, computed once; positions and rows [T]
                                            int32: where in which sequence each token stands
    prefill_attention(query, key, value, key_cache, value_cache, layout)
                                            packed [T, H, D] each -> [T, H * D]; token t sees what stands before it
                                            in its own sequence
    decode_layout(block_tables, lengths)    the same for one decode step
    decode_attention(query, key_cache, value_cache, layout)
                                            query [B, H, D], the last token of each sequence -> [B, H * D]

The cache is paged: the token at position p of sequence b lies in row `block_tables[b, p // block_size] * block_size
+ p % block_size`, its slot. block_tables [B, blocks] int32 may be as narrow as the longest sequence needs; entries
beyond a sequence's end are not read (MindFormers fills them with -1). lengths [B] int32 counts the tokens of each
sequence, the ones of this call included.

`portable`, plain MindSpore operations, is the definition that every other set is tested against.
"""
from mindspore import dtype as mstype
from mindspore import get_context

from qwen_kernels.portable import PortableKernels

__all__ = ["KERNEL_SETS", "build_kernels", "compute_dtype"]

KERNEL_SETS = {"portable": PortableKernels}


def build_kernels(config):
    """
    The kernel set that `config.kernels` names, or for "auto" the best that this machine can run.

    Raises:
        ValueError: No such set.
    """
    name = "portable" if config.kernels == "auto" else config.kernels
    if name not in KERNEL_SETS:
        raise ValueError(f"kernels: expected one of auto, {', '.join(KERNEL_SETS)}, found {name!r}")
    return KERNEL_SETS[name](config)


def compute_dtype(config):
    """The type that weights are kept and multiplied in: the configured one on an NPU, float32 on a CPU, whose
    MindSpore has no bfloat16 product and a float16 one that is ten times slower than float32."""
    return mstype.float32 if get_context("device_target") == "CPU" else config.compute_dtype
