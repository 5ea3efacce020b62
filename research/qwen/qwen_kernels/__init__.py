"""
Kernel sets: the operations that a Qwen is made of, one implementation for each kind of machine.

The model calls these and no other heavy operation. T is the number of tokens of one call, whatever sequences they
belong to: a batch of prompts is packed one behind the other, so no work is spent on padding. H heads of size D.

Elementary operations:

    rms_norm(x, weight, epsilon)            x [T, hidden] -> [T, hidden] in x's type, computed in float32
    linear(x, weights)                      x [T, in] -> [T, out]. weights is what `Linear.weights()` gives: (weight
                                            [out, in], bias [out] or None)
    rotary(x, cos, sin)                     x [T, H, D], cos and sin [T, D / 2] float32 -> [T, H, D] in x's type,
                                            rotated in float32; pairs are (i, i + D / 2)
    swiglu(up, gate)                        [T, width] each -> up * silu(gate)
    cache_write(key, value, caches, slot_mapping)
                                            key and value [T, H, D] go to slots slot_mapping [T] int32 of the two
                                            caches (Parameters, in place) -> the caches as the reading ops must take
                                            them, which keeps the order of writing and reading
    causal_attention(query, key, value)     [B, S, H, D] each -> [B, S, H * D]: whole sequences, without a cache
    prefill_attention(query, key, value, caches, layout)
                                            packed [T, H, D] each -> [T, H * D]; a token sees what stands before it
                                            in its own sequence
    decode_attention(query, caches, layout) query [B, H, D], the last token of each sequence -> [B, H * D]

The two halves of a layer, each defined in `portable` by the elementary operations, and fused where a set can:

    attention(x, norm, wq, wk, wv, wo, rotation, caches, slot_mapping, layout, prefill)
                                            x + wo(attention of the normalised x) [T, hidden]. norm is (weight,
                                            epsilon), wq ... are weights; rotation is (cos, sin, query_cos, query_sin):
                                            LogN scales the query, rotation is linear, so the scale comes folded into
                                            the query's cos and sin
    attention_whole(x, norm, wq, wk, wv, wo, rotation, input_ids)
                                            the same on whole sequences, the tokens of input_ids [B, S], no cache
    feed_forward(x, norm, w1, w2, w3)       x + w2(w1(y) * silu(w3(y))), y the normalised x

And what belongs to them:

    dtype                                   the type of weights, activations and caches
    jit_config                              what outside training the graph must be compiled with (JitConfig), or None
    reads_whole_tables                      whether decoding takes longer the wider block_tables is
    cache_shape(config)                     shape of the key cache, and of the value cache, of one layer
    prefill_layout(block_tables, lengths, positions, rows)
                                            what one prefill's layers share, computed once; positions and rows [T]
                                            int32: where in which sequence each token stands
    decode_layout(block_tables, lengths)    the same for one decode step

The cache is paged: the token at position p of sequence b has slot `block_tables[b, p // block_size] * block_size
+ p % block_size`. block_tables [B, blocks] int32 may be as narrow as the longest sequence needs; entries beyond a
sequence's end are not read (MindFormers fills them with -1). lengths [B] int32 counts the tokens of each sequence,
the ones of this call included.

`portable`, plain MindSpore operations, is the definition that every other set is tested against.
"""
import os

import mindspore as ms
from mindformers.tools.logger import logger

from qwen_kernels.ascend import AscendKernels
from qwen_kernels.cpu import CpuKernels, KernelsUnavailable
from qwen_kernels.portable import PortableKernels

__all__ = ["KERNEL_SETS", "build_kernels", "runnable_kernels"]

KERNEL_SETS = {"portable": PortableKernels, "cpu": CpuKernels, "ascend": AscendKernels}
OWN_KERNELS = {"CPU": "cpu", "Ascend": "ascend"}


def runnable_kernels():
    """The names of the sets for the device in use: `portable`, then its own."""
    own = OWN_KERNELS.get(ms.get_context("device_target"))
    return [name for name in KERNEL_SETS if name in ("portable", own)]


def build_kernels(config):
    """
    The kernel set that the environment variable QWEN_KERNELS names, else `config.kernels`; for "auto" the best that
    this machine can run.

    Raises:
        ValueError: No such set, or the named one can't be built here.
    """
    name = os.environ.get("QWEN_KERNELS") or config.kernels
    if name not in ("auto", *KERNEL_SETS):
        raise ValueError(f"kernels: expected one of auto, {', '.join(KERNEL_SETS)}, found {name!r}")
    try:
        return KERNEL_SETS[runnable_kernels()[-1] if name == "auto" else name](config)
    except KernelsUnavailable as error:
        if name != "auto":
            raise ValueError(f"kernels {name}: {error}") from None
        logger.warning("Portable kernels are used: %s.", error)
        return PortableKernels(config)
