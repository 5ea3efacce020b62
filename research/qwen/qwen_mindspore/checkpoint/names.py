"""The names of Qwen's tensors: Hugging Face on one side, MindSpore on the other.

The Hugging Face names are those of QWenLMHeadModel's state dict, the MindSpore names those of the published
MindFormers Qwen checkpoints. Weights are [out, in] on both sides. `c_attn` stacks the rows of q, k and v.

Where the config has a `quantization`, a quantized linear has `weight`, `scales`, `zeros` and `order` on both sides, see
`checkpoint.packing`; AutoGPTQ's own tensors become those, and those AutoGPTQ's, in `checkpoint.gptq`.
"""
import re
from typing import NamedTuple

from qwen_mindspore.checkpoint.packing import EMBEDDING as EMBEDDING_NAME
from qwen_mindspore.checkpoint.packing import PACKED_TYPES, Quantization

# MindSpore name, Hugging Face name, which third of its rows (None: all of them), shape on the MindSpore side.
EMBEDDING = (
    ("transformer.wte.embedding_weight", "transformer.wte.weight", None, ("vocab", "hidden")),
)
MS_LAYER, HF_LAYER = "transformer.layers.{}.", "transformer.h.{}."
LAYER = (
    ("attention_norm.weight", "ln_1.weight", None, ("hidden",)),
    ("attention.wq.weight", "attn.c_attn.weight", 0, ("heads", "hidden")),
    ("attention.wk.weight", "attn.c_attn.weight", 1, ("heads", "hidden")),
    ("attention.wv.weight", "attn.c_attn.weight", 2, ("heads", "hidden")),
    ("attention.wq.bias", "attn.c_attn.bias", 0, ("heads",)),
    ("attention.wk.bias", "attn.c_attn.bias", 1, ("heads",)),
    ("attention.wv.bias", "attn.c_attn.bias", 2, ("heads",)),
    ("attention.wo.weight", "attn.c_proj.weight", None, ("hidden", "heads")),
    ("ffn_norm.weight", "ln_2.weight", None, ("hidden",)),
    ("feed_forward.w1.weight", "mlp.w1.weight", None, ("ffn", "hidden")),
    ("feed_forward.w3.weight", "mlp.w2.weight", None, ("ffn", "hidden")),
    ("feed_forward.w2.weight", "mlp.c_proj.weight", None, ("hidden", "ffn")),
)
FINAL_NORM = (
    ("transformer.ln_f.weight", "transformer.ln_f.weight", None, ("hidden",)),
)
HEAD = (
    ("lm_head.weight", "lm_head.weight", None, ("vocab", "hidden")),
)

# Buffers that some transformers versions saved: rotary frequencies and masks, which the model makes anew.
HARMLESS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(bias|masked_bias|logn_tensor))$")


class Piece(NamedTuple):
    """Rows `first` to `last` of the tensor `name`."""

    name: str
    first: int
    last: int


class Tensor(NamedTuple):
    """A tensor to write: its shape, the pieces that stacked by rows give it, its type where that is no float's."""

    shape: tuple
    pieces: tuple
    dtype: str | None = None


def hf_to_ms(config):
    """What MindSpore's tensors are made of.

    Args:
        config: the dict of a Qwen config.json.

    Returns:
        {MindSpore name: Tensor made of pieces of Hugging Face tensors}, in the model's order.

    Raises:
        ValueError: config.json lacks a size, a size is not a positive whole number, or `quantization` is wrong.
    """
    tensors = {}
    for ms_name, hf_name, part, shape, dtype in _pairs(config):
        first = (part or 0) * shape[0]
        tensors[ms_name] = Tensor(shape, (Piece(hf_name, first, first + shape[0]),), dtype)
    return tensors


def ms_to_hf(config):
    """What Hugging Face's tensors are made of: the inverse of `hf_to_ms`. q, k and v share the order of q."""
    tensors = {}
    for ms_name, hf_name, part, shape, dtype in _pairs(config):
        whole = tensors.get(hf_name, Tensor((0, *shape[1:]), (), dtype))
        if part is None and whole.pieces:
            continue
        pieces = (*whole.pieces, Piece(ms_name, 0, shape[0]))
        tensors[hf_name] = Tensor((whole.shape[0] + shape[0], *shape[1:]), pieces, dtype)
    return tensors


def hf_shapes(config):
    """{Hugging Face name: shape}."""
    return {name: tensor.shape for name, tensor in ms_to_hf(config).items()}


def ms_shapes(config):
    """{MindSpore name: shape}."""
    return {name: tensor.shape for name, tensor in hf_to_ms(config).items()}


def linears(config):
    """{Hugging Face name: (MindSpore names, outputs, inputs)} of the linears, names without `.weight`."""
    unquantized = {key: value for key, value in config.items() if key != "quantization"}
    return {name.removesuffix(".weight"): (tuple(linear_name(piece.name) for piece in tensor.pieces), *tensor.shape)
            for name, tensor in ms_to_hf(unquantized).items()
            if len(tensor.shape) == 2 and linear_name(tensor.pieces[0].name) != EMBEDDING_NAME}


def linear_name(name):
    """The name of a linear, or of the embedding, by that of its weight on the MindSpore side."""
    return name.removesuffix(".weight").removesuffix(".embedding_weight")


def _pairs(config):
    """The table for a whole model: (MindSpore name, Hugging Face name, part, shape in numbers, type if no float's)."""
    quantization = Quantization.from_dict(config.get("quantization"))
    for ms_name, hf_name, part, shape in _float_pairs(config):
        name = linear_name(ms_name)
        if quantization is None or len(shape) == 1 or not quantization.covers(name):
            yield ms_name, hf_name, part, shape, None
            continue
        shapes = quantization.shapes(*shape)
        if name == EMBEDDING_NAME:
            shapes.pop("order", None)
        for kind, packed_shape in shapes.items():
            packed_name = ms_name if kind == "weight" else f"{name}.{kind}"
            yield (packed_name, f"{hf_name.removesuffix('.weight')}.{kind}", None if kind == "order" else part,
                   packed_shape, PACKED_TYPES.get(kind))


def _float_pairs(config):
    """`_pairs` of an unquantized model, without the type."""
    sizes = _sizes(config)
    layers = [(MS_LAYER.format(layer) + ms_name, HF_LAYER.format(layer) + hf_name, part, shape)
              for layer in range(_size(config, "num_hidden_layers"))
              for ms_name, hf_name, part, shape in LAYER]
    head = () if config.get("tie_word_embeddings") else HEAD
    return [(ms_name, hf_name, part, tuple(sizes[size] for size in shape))
            for ms_name, hf_name, part, shape in (*EMBEDDING, *layers, *FINAL_NORM, *head)]


def _sizes(config):
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_size = _size(config, "kv_channels") if "kv_channels" in config else hidden // heads
    return {
        "vocab": _size(config, "vocab_size"),
        "hidden": hidden,
        "heads": heads * head_size,
        # Qwen's config counts both branches of the feed-forward.
        "ffn": _size(config, "intermediate_size") // 2,
    }


def _size(config, key):
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value
