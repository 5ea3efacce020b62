"""
Kernel sets: the operations that a Qwen is made of, one implementation for each kind of machine.

The model calls these and no other heavy operation. T is the number of tokens of one call, whatever sequences they
belong to: a batch of prompts is packed one behind the other, so no work is spent on padding. H heads of size D.

Elementary operations:

    rms_norm(x, weight, epsilon)            x [T, hidden] -> [T, hidden] in x's type, computed in float32
    linear(x, weights)                      x [T, in] -> [T, out]; weights as `kernels.weights.Weights` describes them.
                                            The same in every set: a set replaces `product`, which has neither adapter
                                            nor cell
    dequantize(weight, scales, zeros, kind, group_size)
                                            rows [R, in] of a quantized weight, as checkpoints hold it
    rotary(x, cos, sin)                     x [T, H, D], cos and sin [T, D / 2] float32 -> [T, H, D] in x's type,
                                            rotated in float32; pairs are (i, i + D / 2)
    swiglu(up, gate)                        [T, width] each -> up * silu(gate)
    cache_write(key, value, caches, slot_mapping)
                                            key and value [T, H, D] go to slots slot_mapping [T] int32 of the two
                                            caches (Parameters, in place) -> the caches as the reading ops must take
                                            them, which keeps the order of writing and reading. For the prefill of an
                                            8-bit cache also rows [T] and lengths [B], see below
    causal_attention(query, key, value)     [B, S, H, D] each -> [B, S, H * D]: whole sequences, without a cache
    prefill_attention(query, key, value, caches, layout)
                                            packed [T, H, D] each -> [T, H * D]; a token sees what stands before it
                                            in its own sequence
    decode_attention(query, caches, layout) query [B, H, D], the last token of each sequence -> [B, H * D]

A layer, which `portable` defines by the elementary operations, and which is fused where a set can. attention is
(norm, wq, wk, wv, wo) and feed_forward (norm, w1, w2, w3), where a norm is (weight, epsilon) and wq ... are Weights;
rotation is (cos, sin, query cos, query sin), [T, D / 2] float32 each: LogN scales the query, by a factor in the last
two.

    layer(x, attention, feed_forward, rotation, caches, slot_mapping, layout, prefill)
                                            y = x + wo(attention of the normalized x), then y + w2(w1(z) * silu(w3(z))),
                                            z the normalized y; [T, hidden]
    layer_whole(x, attention, feed_forward, rotation, input_ids)
                                            the same on whole sequences, the tokens of input_ids [B, S], no cache

All layers at once, outside training:

    runs_at_once(layers)                    whether the set can, given (attention, feed_forward) of each layer
    layer_table(layers)                     where the weights and caches are, of (attention, feed_forward, caches) of
                                            each layer, see `LayerTable`
    layers(x, table, rotation, slot_mapping, block_tables, lengths, queries)
                                            the layers in order; table is its address. In decoding queries is None
    layers_whole(x, table, rotation, input_ids)
                                            the same on whole sequences

And what belongs to them:

    dtype                                   the type of weights, activations and caches
    jit_config                              what outside training the graph must be compiled with (JitConfig), or None
    reads_whole_tables                      whether decoding takes longer the wider block_tables is
    faster_whole_prefill                    whether a prefill of whole sequences, with queries None, is worth a graph of
                                            its own
    bind(weights)                           the Weights, with what the set keeps with them in `own`
    quantized_parameters(quantization, outputs, inputs)
                                            {"weight", "scales", "zeros": (shape, type)}: how the set holds a quantized
                                            linear
    prepare_quantized(quantization, weight, scales, zeros)
                                            numpy arrays as `checkpoint.packing` has them -> those that it holds
    cache_shape(config)                     shape of the key cache, and of the value cache, of one layer
    cache_scales_shape(config)              of their scales, where they are of 8 bits
    prefill_layout(block_tables, lengths, queries, positions, rows)
                                            what one prefill's layers share, computed once; positions and rows [T]
                                            int32: where in which sequence each token stands; queries [B] int32: how
                                            many of each sequence's tokens this call has, its last ones, or None: all
    decode_layout(block_tables, lengths)    the same for one decode step

The cache is paged: the token at position p of sequence b has slot `block_tables[b, p // block_size] * block_size
+ p % block_size`. block_tables [B, blocks] int32 may be as narrow as the longest sequence needs; entries beyond a
sequence's end are not read (MindFormers fills them with -1). lengths [B] int32 counts the tokens of each sequence,
the ones of this call included.

caches are (key, value), of `cache_shape`, in `dtype`. With `use_cache_quantization` they are (key, value, key scales,
value scales), the first two in uint8, the others float32 of `cache_scales_shape`, which each slot has H scales and then
H zeros in: a head of a token is scale * (level - zero). A head's scale and zero span all tokens that one call writes
for a sequence, as in the reference: who wants the same levels again writes by the same calls, see `generate.blocks`.

`portable`, plain MindSpore operations, is the definition that every other set is tested against.
"""
import os

import mindspore as ms
from mindformers.tools.logger import logger

from qwen_mindspore.kernels.ascend import AscendKernels
from qwen_mindspore.kernels.cpu import CpuKernels, KernelsUnavailable
from qwen_mindspore.kernels.portable import PortableKernels

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
