"""AutoGPTQ's checkpoints as the packed tensors of `checkpoint.packing`, and the way back.

A quantized linear P of `inputs` -> `outputs` has in AutoGPTQ's files

    P.qweight  int32 [inputs * bits / 32, outputs]  32 bits hold inputs that follow each other, the first one lowest
    P.qzeros   int32 [groups, outputs * bits / 32]  the same of outputs; each is the zero less one, but for "gptq_v2",
                                                    see `gptq_zeros`
    P.scales   float16 [groups, outputs]
    P.g_idx    int32 [inputs]                       the group of each input; may be missing where none is reordered
    P.bias     zeros, where the model has no bias

A zero of 0 is stored as the highest level, which AutoGPTQ's own torch code reads as 0 again.

Source: https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
"""
import math
from dataclasses import replace

import numpy as np

from qwen_mindspore.checkpoint.formats import FLOATS, Stored
from qwen_mindspore.checkpoint.gptq_zeros import is_second_version
from qwen_mindspore.checkpoint.names import Piece, Tensor, linears, ms_to_hf
from qwen_mindspore.checkpoint.packing import (
    EMBEDDING,
    HEAD,
    LAYERS,
    PACKED_TYPES,
    Quantization,
    dequantize,
    pack,
    sort_by_group,
    typed,
    unpack,
)
from qwen_mindspore.common.files import read_json
from qwen_mindspore.common.text import shown
from qwen_mindspore.families import family_of

# What a quantize_config.json has besides, and AutoGPTQ's defaults for it.
OTHER_SETTINGS = {"damp_percent": 0.01, "static_groups": False, "true_sequential": True, "model_name_or_path": None}
FORMATS = ("gptq", "gptq_v2")
# What config.json and quantize_config.json must not say differently.
COMPARED = ("bits", "group_size", "desc_act", "sym", "quant_method", "checkpoint_format", "is_marlin_format")
STORED_TYPES = {"qweight": ("int32",), "qzeros": ("int32",), "scales": FLOATS, "g_idx": ("int32",)}


def read_settings(folder, config):
    """How a Hugging Face folder is quantized, by its quantize_config.json and `quantization_config` in config.json.

    Args:
        folder: Path of the folder.
        config: the dict of its config.json.

    Returns:
        The dict of settings, or None if the model is not quantized. Values are as they are meant, see `packing.typed`;
        the format of the zeros is `checkpoint_format`, where it is given, under either name.

    Raises:
        ValueError: the two contradict each other, or say that it is quantized in a way that is not read here.
    """
    inside, path = config.get("quantization_config"), folder / "quantize_config.json"
    beside = read_json(path) if path.is_file() else None
    if inside is None and beside is None:
        return None
    if not isinstance(inside, dict | None):
        raise ValueError(f"{folder / 'config.json'}: quantization_config: expected an object of settings, found "
                         f"{shown(inside)}")
    inside, beside = _settings_of(inside or {}, folder / "config.json"), _settings_of(beside or {}, path)
    for key in COMPARED:
        if key in inside and key in beside and inside[key] != beside[key]:
            raise ValueError(f"{path}: {key} is {shown(beside[key])}, in config.json it is {shown(inside[key])}: "
                             "fetch the two files of one model")
    settings = beside | inside
    if settings.get("quant_method", "gptq") != "gptq":
        raise ValueError(f"{folder}: quantized by {shown(settings['quant_method'])}, expected 'gptq': "
                         "convert the unquantized model")
    if not isinstance(settings.get("is_marlin_format", False), bool):
        raise ValueError(f"{folder}: is_marlin_format: expected true or false, found "
                         f"{shown(settings['is_marlin_format'])}")
    form = "marlin" if settings.get("is_marlin_format") else settings.get("checkpoint_format") or "gptq"
    if form not in FORMATS:
        raise ValueError(f"{folder}: checkpoint_format is {shown(form)}, expected {' or '.join(FORMATS)}: "
                         "fetch the checkpoint that was made without it")
    if settings.get("dynamic"):
        raise ValueError(f"{folder}: quantized with `dynamic`, a setting for each module, which is not read here")
    try:
        Quantization.from_dict(settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return settings


def _settings_of(content, path):
    """The settings of a file, None left out; `format`, as GPTQModel calls it, under AutoGPTQ's name."""
    settings = {key: value for key, value in typed(content).items() if value is not None or key not in COMPARED}
    form = settings.pop("format", None)
    if form is not None and settings.setdefault("checkpoint_format", form) != form:
        raise ValueError(f"{path}: format is {shown(form)}, checkpoint_format is {shown(settings['checkpoint_format'])}"
                         ", which says the same: keep the one that is right")
    return settings


class PackedCheckpoint:
    """An AutoGPTQ checkpoint as `checkpoint.packing` packs it: `P.weight`, `scales`, `zeros`, `order`.

    It is used like the Checkpoint that it is made of. Names are Hugging Face's; other tensors pass through.

    Args:
        checkpoint: a Checkpoint.
        config: the dict of its config.json.
        settings: see `read_settings`.

    Attributes:
        quantization: what the written config.json says, a dict: `settings` as they turned out to be.

    Raises:
        ValueError: names a tensor that is missing, misshapen, or not of so many bits; groups of inputs that are no
            groups; a bias that is not zero where the model has none; zeros of which nobody can say how they are stored.
    """

    def __init__(self, checkpoint, config, settings):
        self.files, self.place, self._source = checkpoint.files, checkpoint.place, checkpoint
        quantization, every = Quantization.from_dict(settings), linears(config)
        for name, (_, outputs, inputs) in every.items():
            self._check(name, outputs, inputs, quantization)
        self._linears = {name: linear for name, linear in every.items() if f"{name}.weight" not in checkpoint.tensors}
        if not self._linears:
            raise ValueError(f"{self.place}: no tensor is quantized, though the config says so: "
                             "is it the config.json of this checkpoint?")
        self._orders = {name: self._read_order(name, linear[2], quantization)
                        for name, linear in self._linears.items()}
        is_reordered = any(not np.array_equal(order, np.arange(len(order))) for order in self._orders.values())
        quantized = {part for parts, _, _ in self._linears.values() for part in parts}
        self._format = replace(quantization, desc_act=is_reordered,
                               quantized=_patterns(quantized, family_of(config), config["num_hidden_layers"], every))
        self._is_v2, is_symmetric = is_second_version(self, settings)
        if quantization.sym and not is_symmetric:
            self._format = replace(self._format, sym=False)
        known = {key: value for key, value in settings.items() if key not in ("quantized", "quant_method")}
        if self._is_v2 != (settings.get("checkpoint_format") == "gptq_v2"):
            known["checkpoint_format"] = FORMATS[self._is_v2]
        self.quantization = known | self._format.to_dict()

        model = ms_to_hf(config)
        self.tensors = {}
        for name, stored in checkpoint.tensors.items():
            linear, _, kind = name.rpartition(".")
            if linear in every and kind == "bias" and name not in model:
                self._check_bias(name, stored)
            elif not (linear in self._linears and kind in STORED_TYPES):
                self.tensors[name] = stored
        for name, (_, outputs, inputs) in self._linears.items():
            for kind, shape in self._format.shapes(outputs, inputs).items():
                dtype = PACKED_TYPES.get(kind) or checkpoint.tensors[f"{name}.scales"].dtype
                self.tensors[f"{name}.{kind}"] = Stored(shape, dtype)

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        import torch

        linear, _, kind = name.rpartition(".")
        if linear not in self._linears or kind == "bias":
            return self._source.read(name, first, last)
        if kind == "scales":
            scales = self._whole(name).t()[first:last].contiguous()
            if not scales.isfinite().all():
                raise ValueError(f"{self.place}: {name} has values that are not finite: fetch the file again")
            return scales
        rows = {"weight": self._weight, "zeros": self._zeros, "order": self._orders.get}[kind](linear)
        return torch.from_numpy(np.ascontiguousarray(rows[first:last]))

    def dequantized(self, name, first, last):
        """float32 rows `first` to `last` of the weight of a quantized linear, as numpy array."""
        weight, scales, zeros = (self.read(f"{name}.{kind}", first, last) for kind in ("weight", "scales", "zeros"))
        order = self._orders[name] if self._format.desc_act else None
        return dequantize(weight.numpy(), scales.float().numpy(), zeros.numpy(), self._format.bits,
                          self._format.group_size, order)

    def quantized(self):
        """{name: (outputs, inputs)} of the quantized linears."""
        return {name: shape for name, (_, *shape) in self._linears.items()}

    def _weight(self, linear):
        """uint8 [outputs, inputs * bits / 8]"""
        packed = _as_bytes(self._whole(f"{linear}.qweight").numpy().T)
        if not self._format.desc_act:
            return packed
        return pack(unpack(packed, self._format.bits)[:, self._orders[linear]], self._format.bits)

    def stored_zeros(self, linear):
        """uint8 [outputs, groups], as they are in the file"""
        return unpack(_as_bytes(self._whole(f"{linear}.qzeros").numpy()), self._format.bits).T

    def stored_levels(self, linear):
        """uint8 [outputs, inputs], the levels in the order of their groups"""
        return unpack(self._weight(linear), self._format.bits)

    def _zeros(self, linear):
        """uint8 [outputs, groups]"""
        zeros = self.stored_zeros(linear)
        return zeros if self._is_v2 else zeros + 1 & 2 ** self._format.bits - 1

    def _whole(self, name):
        return self._source.read(name, 0, self._source.tensors[name].shape[0])

    def _check(self, name, outputs, inputs, quantization):
        """ValueError where a linear is neither a whole ordinary one nor a whole quantized one."""
        tensors, bits, groups = self._source.tensors, quantization.bits, quantization.groups(inputs)
        kinds = {"qweight": (inputs * bits // 32, outputs), "qzeros": (groups, outputs * bits // 32),
                 "scales": (groups, outputs)}
        if f"{name}.weight" in tensors:
            for kind in kinds:
                if f"{name}.{kind}" in tensors:
                    raise ValueError(f"{self.place}: both {name}.weight and {name}.{kind} are there: "
                                     "name the one checkpoint that is meant")
            return
        if inputs * bits % 32 or outputs * bits % 32:
            raise ValueError(f"{self.place}: {name} has {inputs} inputs and {outputs} outputs, which don't fill words "
                             f"of 32 bits with {bits} bits each: AutoGPTQ can't have packed it")
        for kind, shape in kinds.items():
            if f"{name}.{kind}" not in tensors:
                raise ValueError(f"{self.place}: {name}.{kind} is missing: fetch the whole checkpoint, and the "
                                 "config.json that belongs to it")
            stored = tensors[f"{name}.{kind}"]
            if stored.shape != shape:
                raise ValueError(f"{self.place}: {name}.{kind} has shape {list(stored.shape)}, expected {list(shape)}"
                                 f"{_why(kind, stored.shape, inputs, quantization)}")
            _check_type(self.place, f"{name}.{kind}", stored)

    def _read_order(self, linear, inputs, quantization):
        """int32 [inputs], the order that sorts by groups."""
        name, groups = f"{linear}.g_idx", quantization.groups(inputs)
        size = inputs if quantization.group_size == -1 else quantization.group_size
        if name not in self._source.tensors:
            if quantization.desc_act:
                raise ValueError(f"{self.place}: {name} is missing, which desc_act needs: fetch the whole checkpoint")
            return np.arange(inputs, dtype=np.int32)
        stored = self._source.tensors[name]
        _check_type(self.place, name, stored)
        if stored.shape != (inputs,):
            raise ValueError(f"{self.place}: {name} has shape {list(stored.shape)}, expected [{inputs}]")
        group = self._whole(name).numpy()
        if group.min() < 0 or group.max() >= groups:
            raise ValueError(f"{self.place}: {name} has groups from {group.min()} to {group.max()}, expected 0 to "
                             f"{groups - 1}: fetch the file again")
        found = np.bincount(group, minlength=groups)
        expected = np.bincount(np.arange(inputs) // size)
        if not np.array_equal(found, expected):
            wrong = int(np.flatnonzero(found != expected)[0])
            raise ValueError(f"{self.place}: {name} has {found[wrong]} inputs in group {wrong}, expected "
                             f"{expected[wrong]} by group_size {quantization.group_size}: fetch the file again")
        return sort_by_group(group)

    def _check_bias(self, name, stored):
        """ValueError where a bias that the model has no place for is more than zeros."""
        if stored.dtype not in FLOATS or self._source.read(name, 0, math.prod(stored.shape[:1])).any():
            raise ValueError(f"{self.place}: {name} is not zero, but a Qwen has no bias there: "
                             "is this a checkpoint of the Qwen that config.json describes?")


class DequantizedCheckpoint:
    """A PackedCheckpoint as an ordinary one, the quantized weights in float32: float16 is what AutoGPTQ rounds to."""

    def __init__(self, packed):
        self.files, self.place, self._packed = packed.files, packed.place, packed
        self._weights = {f"{name}.weight": (name, tuple(shape)) for name, shape in packed.quantized().items()}
        parts = {f"{name}.{kind}" for name in packed.quantized() for kind in ("weight", "scales", "zeros", "order")}
        self.tensors = {name: stored for name, stored in packed.tensors.items() if name not in parts}
        self.tensors |= {name: Stored(shape, "float32") for name, (_, shape) in self._weights.items()}

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        import torch

        if name not in self._weights:
            return self._packed.read(name, first, last)
        return torch.from_numpy(self._packed.dequantized(self._weights[name][0], first, last))


class GptqCheckpoint:
    """A quantized MindSpore checkpoint as AutoGPTQ packs it, under Hugging Face's names.

    Args:
        checkpoint: the Checkpoint, whose tensors are checked.
        config: the dict of its config.json, with `quantization`.

    Attributes:
        table: {Hugging Face name: names.Tensor}, what to write of it.
        settings: the quantize_config.json.

    Raises:
        ValueError: names what AutoGPTQ's format can't hold.
    """

    def __init__(self, checkpoint, config):
        self.files, self.place, self._source = checkpoint.files, checkpoint.place, checkpoint
        self._quantization = Quantization.from_dict(config["quantization"])
        self._is_v2 = config["quantization"].get("checkpoint_format") == "gptq_v2"
        self._packed = ms_to_hf(config)
        self.settings = _quantize_config(config["quantization"], self._quantization)
        if self._quantization.covers(EMBEDDING):
            raise ValueError(f"{self.place}: the embedding is quantized, for which AutoGPTQ has no format: "
                             "quantize the model again without it")
        self.table, self._made = {}, {}
        for name, tensor in self._packed.items():
            linear = name.rpartition(".")[0]
            if f"{linear}.zeros" not in self._packed or name.endswith(".bias"):
                self.table[name] = tensor
        for linear, (parts, outputs, inputs) in linears(config).items():
            if any(map(self._quantization.covers, parts)):
                self._add(linear, parts, outputs, inputs)
        self.tensors = checkpoint.tensors | self._made

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        import torch

        if name not in self._made:
            return self._source.read(name, first, last)
        linear, _, kind = name.rpartition(".")
        if kind == "scales":
            return self._stacked(name).t()[first:last].contiguous()
        if kind == "bias":
            return torch.zeros(last - first, dtype=getattr(torch, self._made[name].dtype))
        made = {"qweight": self._qweight, "qzeros": self._qzeros, "g_idx": self._g_idx}[kind](linear)
        return torch.from_numpy(np.ascontiguousarray(made[first:last]))

    def _add(self, linear, parts, outputs, inputs):
        """Put a quantized linear into the table."""
        bits, groups = self._quantization.bits, self._quantization.groups(inputs)
        if not all(map(self._quantization.covers, parts)):
            raise ValueError(f"{self.place}: only some of {', '.join(parts)} are quantized, which are one in Hugging "
                             "Face's model: quantize all of them, or none")
        if inputs * bits % 32 or outputs * bits % 32:
            raise ValueError(f"{self.place}: {linear} has {inputs} inputs and {outputs} outputs, which don't fill "
                             f"words of 32 bits with {bits} bits each, as AutoGPTQ packs them")
        self._check_orders(parts, inputs)
        scales = {self._source.tensors[f"{part}.scales"].dtype for part in parts}
        if len(scales) > 1:
            raise ValueError(f"{self.place}: the scales of {', '.join(parts)} are of different types "
                             f"({', '.join(sorted(scales))})")
        (dtype,) = scales
        made = {"qweight": Stored((inputs * bits // 32, outputs), "int32"),
                "qzeros": Stored((groups, outputs * bits // 32), "int32"),
                "scales": Stored((groups, outputs), dtype), "g_idx": Stored((inputs,), "int32")}
        if f"{linear}.bias" not in self._packed:
            made["bias"] = Stored((outputs,), dtype)
        for kind, stored in made.items():
            name = f"{linear}.{kind}"
            self._made[name] = stored
            is_float = stored.dtype in FLOATS
            self.table[name] = Tensor(stored.shape, (Piece(name, 0, stored.shape[0]),), None if is_float else "int32")

    def _check_orders(self, parts, inputs):
        """ValueError where an order is none, or where parts that become one tensor have different ones."""
        orders = [self._source.read(f"{part}.order", 0, inputs).numpy() for part in parts
                  if self._quantization.desc_act]
        for part, order in zip(parts, orders):
            if not np.array_equal(np.sort(order), np.arange(inputs)):
                raise ValueError(f"{self.place}: {part}.order is not an order of {inputs} inputs: make the file again")
            if not np.array_equal(order, orders[0]):
                raise ValueError(f"{self.place}: {part}.order is not that of {parts[0]}, with which it is one in "
                                 "Hugging Face's model: quantize them alike, or without desc_act")

    def _qweight(self, linear):
        packed = self._stacked(f"{linear}.weight").numpy()
        if self._quantization.desc_act:
            levels = unpack(packed, self._quantization.bits)
            unsorted = np.empty_like(levels)
            unsorted[:, self._order(linear)] = levels
            packed = pack(unsorted, self._quantization.bits)
        return np.ascontiguousarray(packed).view("<i4").T

    def _qzeros(self, linear):
        zeros = self._stacked(f"{linear}.zeros").numpy()
        if not self._is_v2:
            zeros = zeros - np.uint8(1) & np.uint8(2 ** self._quantization.bits - 1)
        return np.ascontiguousarray(pack(zeros.T, self._quantization.bits)).view("<i4")

    def _g_idx(self, linear):
        group = np.empty(self._made[f"{linear}.g_idx"].shape, np.int32)
        size = len(group) if self._quantization.group_size == -1 else self._quantization.group_size
        group[self._order(linear)] = np.arange(len(group)) // size
        return group

    def _order(self, linear):
        if not self._quantization.desc_act:
            return slice(None)
        return self._stacked(f"{linear}.order").numpy()

    def _stacked(self, name):
        import torch

        return torch.cat([self._source.read(*piece) for piece in self._packed[name].pieces])


def _quantize_config(settings, quantization):
    """A quantize_config.json, which config.json repeats."""
    config = OTHER_SETTINGS | {key: value for key, value in settings.items() if key != "quantized"}
    config |= {key: getattr(quantization, key) for key in ("bits", "group_size", "desc_act", "sym")}
    config |= {"quant_method": "gptq", "model_file_base_name": "model"}
    return config | ({"lm_head": True} if quantization.covers(HEAD) else {})


def _patterns(names, family, layers, every):
    """The shortest `quantized` that says these names."""
    def named(kind, layer):
        return family.prefix("ms", layer) + kind

    kinds = {part.removeprefix(named("", 0)) for parts, _, _ in every.values() for part in parts
             if part.startswith(named("", 0))}
    whole = {kind for kind in kinds if all(named(kind, layer) in names for layer in range(layers))}
    covered = {named(kind, layer) for kind in whole for layer in range(layers)}
    patterns = [LAYERS] if whole == kinds else sorted(named(kind, "*") for kind in whole)
    return (*patterns, *sorted(names - covered))


def _why(kind, shape, inputs, quantization):
    """What may be wrong with a shape."""
    for bits in (2, 3, 4, 8):
        if kind == "qweight" and len(shape) == 2 and shape[0] == inputs * bits // 32 and bits != quantization.bits:
            return f" by {quantization.bits} bits, which the config says; these are {bits} bits"
    return f" by config.json, {quantization.bits} bits and group_size {quantization.group_size}: do they belong to it?"


def _check_type(place, name, stored):
    expected = STORED_TYPES[name.rpartition(".")[2]]
    if stored.dtype not in expected:
        raise ValueError(f"{place}: {name} has type {stored.dtype}, expected {', '.join(expected)}")


def _as_bytes(words):
    """int32 [..., n] -> uint8 [..., 4 * n], lowest byte first."""
    return np.ascontiguousarray(words, "<i4").view(np.uint8)
