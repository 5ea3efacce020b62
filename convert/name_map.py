"""The names of Qwen's tensors: Hugging Face on one side, MindSpore on the other.

The Hugging Face names are those of QWenLMHeadModel's state dict, the MindSpore names those of the published
MindFormers Qwen checkpoints. Weights are [out, in] on both sides. `c_attn` stacks the rows of q, k and v.
"""
import re
from typing import NamedTuple

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
    """A tensor to write: its shape, and the pieces that stacked by rows give it."""

    shape: tuple
    pieces: tuple


def hf_to_ms(config):
    """What MindSpore's tensors are made of.

    Args:
        config: the dict of a Hugging Face Qwen config.json.

    Returns:
        {MindSpore name: Tensor made of pieces of Hugging Face tensors}, in the model's order.

    Raises:
        ValueError: config.json lacks a size, or a size is not a positive whole number.
    """
    tensors = {}
    for ms_name, hf_name, part, shape in _pairs(config):
        first = (part or 0) * shape[0]
        tensors[ms_name] = Tensor(shape, (Piece(hf_name, first, first + shape[0]),))
    return tensors


def ms_to_hf(config):
    """What Hugging Face's tensors are made of: the inverse of `hf_to_ms`."""
    pieces, shapes = {}, {}
    for ms_name, hf_name, _, shape in _pairs(config):
        pieces.setdefault(hf_name, []).append(Piece(ms_name, 0, shape[0]))
        shapes[hf_name] = (shape[0] * len(pieces[hf_name]), *shape[1:])
    return {name: Tensor(shapes[name], tuple(pieces[name])) for name in shapes}


def hf_shapes(config):
    """{Hugging Face name: shape}."""
    return {name: tensor.shape for name, tensor in ms_to_hf(config).items()}


def ms_shapes(config):
    """{MindSpore name: shape}."""
    return {name: tensor.shape for name, tensor in hf_to_ms(config).items()}


def _pairs(config):
    """The table for a whole model: (MindSpore name, Hugging Face name, part, shape in numbers)."""
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
