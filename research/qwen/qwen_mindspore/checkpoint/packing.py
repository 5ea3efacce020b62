"""
Quantized weights: how a config describes them, how they are packed, and what they stand for. In numpy.

A linear P of `inputs` -> `outputs` that is quantized to `bits` with `group_size` has, instead of a float weight,

    P.weight  uint8 [outputs, inputs * bits / 8]  4 bits: input 2i in the low half of byte i, input 2i + 1 in the high
    P.scales  float [outputs, groups]             groups = ceil(inputs / group_size), 1 where group_size is -1;
                                                  float16 in the released models, else as it came
    P.zeros   uint8 [outputs, groups]             the level that stands for 0
    P.order   int32 [inputs]                      only with desc_act: column k of the weight belongs to input order[k];
                                                  columns are sorted, so that column k is of group k // group_size

and the weight is

    w[o, order[k]] = scales[o, k // group_size] * (q[o, k] - zeros[o, k // group_size])

computed in float32 and rounded once, to the type that is computed in: float16, where AutoGPTQ's own scales are float16,
is what AutoGPTQ multiplies by. Where its scales are float32, rounding those to float16 costs some 1e-3 of a logit of 5.
The embedding, where it is quantized, has the same under `transformer.wte`, `order` aside.

Source: https://github.com/AutoGPTQ/AutoGPTQ, whose files hold the same numbers in another order.
"""
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.common.files import read_json
from qwen_mindspore.common.keys import MODEL
from qwen_mindspore.common.kinds import FLAG, INTEGER, read_as
from qwen_mindspore.common.text import shown
from qwen_mindspore.families import FAMILIES, QWEN

__all__ = ["EMBEDDING", "HEAD", "LAYERS", "PACKED_TYPES", "Quantization", "agreed_quantization", "dequantize",
           "find_quantization", "pack", "sort_by_group", "typed", "unpack"]

BITS = (4, 8)
METHODS = ("gptq", "rtn")
# Names on MindSpore's side, which are the model's own, whatever its family.
LAYERS = QWEN.prefix("ms", "*").removesuffix(".")
EMBEDDING, HEAD = QWEN.name("embedding", "ms"), QWEN.name("head", "ms")

# In files; the scales are floats.
PACKED_TYPES = {"weight": "uint8", "zeros": "uint8", "order": "int32"}


@dataclass(frozen=True)
class Quantization:
    """
    The `quantization` of a config.

    Args:
        bits (int): 4 or 8.
        group_size (int): Inputs that share a scale and a zero; -1: all of an output's.
        quant_method (str): How the levels were chosen: "gptq" or "rtn". Says nothing of the packing.
        desc_act (bool): Every quantized linear has an `order`.
        sym (bool): The zeros are all half of the levels.
        quantized (tuple[str]): Names of the quantized linears, or patterns as file names have them. Default: all of
            the layers'. The embedding counts as one, by the name `transformer.wte`.

    Raises:
        ValueError: A value is out of its range.
    """

    bits: int
    group_size: int
    quant_method: str = "gptq"
    desc_act: bool = False
    sym: bool = True
    quantized: tuple = (LAYERS,)

    def __post_init__(self):
        if isinstance(self.quantized, (list, tuple)):
            object.__setattr__(self, "quantized", tuple(self.quantized))
        for name, valid, allowed in (
                ("bits", type(self.bits) is int and self.bits in BITS, "4 or 8"),
                ("group_size", _is_group_size(self.group_size), "a positive whole number, or -1 for one group"),
                ("quant_method", self.quant_method in METHODS, " or ".join(METHODS)),
                ("desc_act", isinstance(self.desc_act, bool), "true or false"),
                ("sym", isinstance(self.sym, bool), "true or false"),
                ("quantized", isinstance(self.quantized, tuple) and self.quantized
                 and all(isinstance(name, str) for name in self.quantized), "a list of names or patterns")):
            if not valid:
                raise ValueError(f"quantization: {name}: expected {allowed}, found {shown(getattr(self, name))}")

    @classmethod
    def from_dict(cls, settings):
        """
        From a config's `quantization`, see `typed`; keys that are not the class's are left alone. None gives None.

        Raises:
            ValueError: Not a dict, `bits` or `group_size` is missing, or see the class.
        """
        if settings is None:
            return None
        known = typed(settings) if isinstance(settings, dict) else {}
        if None in (known.get("bits"), known.get("group_size")):
            raise ValueError(f"quantization: expected at least bits and group_size, found {shown(settings)}")
        return cls(**{field.name: known[field.name] for field in fields(cls) if known.get(field.name) is not None})

    def to_dict(self):
        """What a config holds; `quantized` only where it is not the default."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings["quantized"] = list(self.quantized)
        if self.quantized == (LAYERS,):
            del settings["quantized"]
        return settings

    def reads_like(self, other):
        """Whether a checkpoint of `other` has the same names, shapes and meaning."""
        return (self.bits, self.group_size, self.desc_act, self.quantized) == (
            other.bits, other.group_size, other.desc_act, other.quantized)

    def covers(self, name):
        """Whether the linear of that name is quantized, `transformer.layers.0.attention.wq` for example."""
        return any(fnmatchcase(name, pattern) for pattern in self.quantized)

    def groups(self, inputs):
        """Groups of each output."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)

    def shapes(self, outputs, inputs):
        """
        The shapes of `weight`, `scales`, `zeros` and, with desc_act, `order`, by these names.

        Raises:
            ValueError: The inputs don't fill bytes.
        """
        if inputs * self.bits % 8:
            raise ValueError(f"quantization: {inputs} inputs of {self.bits} bits don't fill whole bytes")
        groups = outputs, self.groups(inputs)
        shapes = {"weight": (outputs, inputs * self.bits // 8), "scales": groups, "zeros": groups}
        return {**shapes, "order": (inputs,)} if self.desc_act else shapes


def _is_group_size(value):
    return type(value) is int and (value == -1 or 0 < value < 2**31)


def typed(settings):
    """
    Settings of a quantization, each as it is meant: 4.0 and "4" are 4, "true" is True, as `common.kinds` has it.
    What can't be meant stays, for `Quantization` to refuse.

    Args:
        settings (dict): A `quantization`, `quantization_config` or quantize_config.json.
    """
    kinds = {"bits": _whole, "group_size": _whole, "desc_act": _flag, "sym": _flag, "is_marlin_format": _flag,
             "quant_method": _lower, "checkpoint_format": _lower, "format": _lower}
    return {key: kinds[key](value) if key in kinds else value for key, value in settings.items()}


def _whole(value):
    return _read(INTEGER, value)


def _flag(value):
    return _read(FLAG, value)


def _read(kind, value):
    """The value as a kind has it; what is none of it as it is."""
    try:
        return kind.read(value)
    except (ValueError, TypeError, OverflowError):
        return value


def _lower(value):
    return value.strip().lower() if isinstance(value, str) else value


def pack(levels, bits):
    """
    Args:
        levels (np.ndarray): uint8 [..., inputs], below 2 ** bits.
        bits (int): 4 or 8.

    Returns:
        uint8 [..., inputs * bits / 8].
    """
    if bits == 8:
        return levels
    return levels[..., ::2] | levels[..., 1::2] << 4


def unpack(packed, bits):
    """uint8 [..., inputs * bits / 8] -> uint8 [..., inputs], the inverse of `pack`."""
    if bits == 8:
        return packed
    levels = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    levels[..., ::2] = packed & 15
    levels[..., 1::2] = packed >> 4
    return levels


def dequantize(weight, scales, zeros, bits, group_size, order=None):
    """
    Args:
        weight, scales, zeros, order (np.ndarray): See the module; of all outputs or of some.
        bits, group_size (int): See `Quantization`.

    Returns:
        float32 [outputs, inputs], inputs in the linear's order.
    """
    levels = unpack(weight, bits)
    inputs = levels.shape[-1]
    group = np.arange(inputs) // (inputs if group_size == -1 else group_size)
    values = levels.astype(np.float32)
    values -= zeros[:, group]
    values *= scales.astype(np.float32)[:, group]
    if order is None:
        return values
    result = np.empty_like(values)
    result[:, order] = values
    return result


def sort_by_group(groups):
    """
    The order that makes groups contiguous.

    Args:
        groups (np.ndarray): [inputs] int, the group of each input.

    Returns:
        int32 [inputs], `order`; inputs of a group keep their sequence.
    """
    return np.argsort(groups, kind="stable").astype(np.int32)


def agreed_quantization(settings, checkpoint):
    """
    The `quantization` of a config and of the checkpoint that it names: that of the one that has any.

    Args:
        settings (dict): The config's, or None.
        checkpoint (str): See `find_quantization`; or empty.

    Returns:
        dict, or None.

    Raises:
        ValueError: They contradict each other, or see `find_quantization`.
    """
    found = find_quantization(checkpoint) if checkpoint else None
    if found is None or settings is None:
        return found or settings
    ours, theirs = Quantization.from_dict(settings), Quantization.from_dict(found)
    if not ours.reads_like(theirs):
        raise ValueError(f"quantization: the config says {ours.to_dict()}, the config.json of {checkpoint} says "
                         f"{theirs.to_dict()}: leave it out of the config")
    return found


def find_quantization(checkpoint):
    """
    The `quantization` in the config.json of a checkpoint.

    Args:
        checkpoint (str): A folder, or a file beside which config.json lies.

    Returns:
        dict, or None where there is no config.json of a known family, or it has none.

    Raises:
        ValueError: config.json is no JSON, or see `Quantization`.
        OSError: See `checkpoint.replace.repair`.
    """
    checkpoint = Path(checkpoint)
    repair(checkpoint)
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if config.get("model_type") not in list(FAMILIES):
        return None
    try:
        quantization = read_as(MODEL["quantization"], "quantization", config.get("quantization"))
        Quantization.from_dict(quantization)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return quantization
