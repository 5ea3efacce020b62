"""What the tensors of one side are made of on the other: Hugging Face on one side, MindSpore on the other.

The names are those of `families`: Hugging Face's are those of the model's state dict, MindSpore's those of the
published MindFormers checkpoints. Weights are [out, in] on both sides. Where several modules have one name on Hugging
Face's side, as q, k and v have `c_attn` in Qwen, that tensor stacks their rows.

Where the config has a `quantization`, a quantized linear has `weight`, `scales`, `zeros` and `order` on both sides, see
`checkpoint.packing`; AutoGPTQ's own tensors become those, and those AutoGPTQ's, in `checkpoint.gptq`.
"""
from collections import Counter
from typing import NamedTuple

from qwen_mindspore.checkpoint.packing import EMBEDDING, PACKED_TYPES, Quantization
from qwen_mindspore.families import family_of

__all__ = ["Piece", "Tensor", "hf_shapes", "hf_to_ms", "linear_name", "linears", "ms_shapes", "ms_to_hf"]


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
        config: the dict of a config.json.

    Returns:
        {MindSpore name: Tensor made of pieces of Hugging Face tensors}, in the model's order.

    Raises:
        ValueError: config.json is of no known family, its sizes can't be, see `families`, or `quantization` is wrong.
    """
    tensors, rows = {}, Counter()
    for ms_name, hf_name, shape, dtype, is_shared in _pairs(config):
        first = 0 if is_shared else rows[hf_name]
        tensors[ms_name] = Tensor(shape, (Piece(hf_name, first, first + shape[0]),), dtype)
        rows[hf_name] += shape[0]
    return tensors


def ms_to_hf(config):
    """What Hugging Face's tensors are made of: the inverse of `hf_to_ms`. q, k and v share the order of q."""
    tensors = {}
    for ms_name, hf_name, shape, dtype, is_shared in _pairs(config):
        whole = tensors.get(hf_name, Tensor((0, *shape[1:]), (), dtype))
        if is_shared and whole.pieces:
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
            if len(tensor.shape) == 2 and linear_name(tensor.pieces[0].name) != EMBEDDING}


def linear_name(name):
    """The name of a linear, or of the embedding, by that of its weight on the MindSpore side."""
    return name.removesuffix(".weight").removesuffix(".embedding_weight")


def _pairs(config):
    """
    (MindSpore name, Hugging Face name, shape, type if no float's, whether all of that Hugging Face name are one and the
    same tensor, not stacked) of every tensor on MindSpore's side.
    """
    quantization = Quantization.from_dict(config.get("quantization"))
    for tensor in family_of(config).tensors(config):
        ms_name, hf_name = tensor.names["ms"], tensor.names["hf"]
        name = linear_name(ms_name)
        if quantization is None or len(tensor.shape) == 1 or not quantization.covers(name):
            yield ms_name, hf_name, tensor.shape, None, False
            continue
        shapes = quantization.shapes(*tensor.shape)
        if name == EMBEDDING:
            shapes.pop("order", None)
        for kind, shape in shapes.items():
            packed_name = ms_name if kind == "weight" else f"{name}.{kind}"
            yield (packed_name, f"{hf_name.removesuffix('.weight')}.{kind}", shape, PACKED_TYPES.get(kind),
                   kind == "order")
