"""Loading a MindSpore checkpoint into a Qwen, with every weight accounted for."""
import mindspore as ms
import numpy as np
from mindformers.tools.logger import logger
from mindspore import Parameter, Tensor

from qwen_mindspore.checkpoint.files import Checkpoint, check_tied_heads, checkpoint_files, how_to_complete
from qwen_mindspore.checkpoint.formats import FLOATS, Stored
from qwen_mindspore.checkpoint.packing import PACKED_TYPES
from qwen_mindspore.families import FAMILIES

__all__ = ["check_weights", "checkpoint_files", "load_weights", "prepare_weights"]

CHUNK_BYTES = 64 * 2**20
ALIGNMENT = 64  # bytes: a cache line


def check_weights(model, tensors, place="checkpoint"):
    """
    Compare the names, shapes and types of a checkpoint with the weights of a model; caches aside.

    Args:
        model (Cell): The model.
        tensors (dict): Name -> Stored. What the model has no place for (optimizer state, say) is left alone.
        place (str): What the message calls the checkpoint.

    Raises:
        ValueError: A weight is missing, of another shape, or quantized where the model's is not, or the other way.
    """
    expected = _expected(model)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"{place}: {len(missing)} of {len(expected)} weights are missing, the first is "
                         f"{missing[0]}; {how_to_complete(missing, expected, tensors)}")
    for name, (shape, dtypes) in expected.items():
        found = tensors[name]
        if "uint8" in (found.dtype, *dtypes) and found.dtype not in dtypes:
            raise ValueError(f"{place}: {name}: expected {' or '.join(dtypes)} by the config, found {found.dtype}: "
                             "give the `quantization` of the checkpoint, or its config.json beside it")
        if tuple(found.shape) != tuple(shape):
            raise ValueError(f"{place}: {name}: expected {tuple(shape)} by the config, found {tuple(found.shape)}: is "
                             f"this the config of that checkpoint?{_hint(name)}")


def load_weights(model, path):
    """
    Load a checkpoint, a few rows or a quantized linear at a time, converting to the type of the model's parameters.

    Args:
        model (Cell): The model.
        path (str): See `checkpoint.files.checkpoint_files`.

    Raises:
        FileNotFoundError, ValueError: See `checkpoint_files`, `Checkpoint`, `check_weights` and `check_tied_heads`; a
            file is damaged.
    """
    checkpoint = Checkpoint(checkpoint_files(path))
    check_weights(model, checkpoint.tensors, f"checkpoint {path}")
    check_tied_heads(checkpoint, _expected(model))
    weights = _weights(model)
    places = _one_array(weights) if model.kernels.dtype == ms.float32 else {}
    packed = set()
    for cell in _quantized(model):
        parts = cell.weight, cell.scales, cell.zeros
        for part, array in zip(parts, cell.prepare(*(_rows(checkpoint, part.name) for part in parts))):
            _set(part, array, places)
            packed.add(part.name)
    for name, parameter in weights.items():
        if name not in packed:
            _copy(parameter, checkpoint, places)
    logger.info("Weights are loaded from %s.", path)


def prepare_weights(model, ckpt_dict):
    """
    Check a checkpoint that MindFormers loads, and bring its quantized linears into the layout of the model's kernels.

    Args:
        model (Cell): The model.
        ckpt_dict (dict): Name -> Parameter.

    Returns:
        dict, the same with the quantized linears' parameters replaced.

    Raises:
        ValueError: See `check_weights` and `check_tied_heads`.
    """
    loaded = _Loaded(ckpt_dict)
    check_weights(model, loaded.tensors)
    check_tied_heads(loaded, _expected(model))
    prepared = {}
    for cell in _quantized(model):
        parts = cell.weight, cell.scales, cell.zeros
        scales = ckpt_dict[cell.scales.name].float().asnumpy()
        arrays = cell.prepare(ckpt_dict[cell.weight.name].asnumpy(), scales, ckpt_dict[cell.zeros.name].asnumpy())
        prepared |= {part.name: Parameter(Tensor(array, part.dtype), name=part.name)
                     for part, array in zip(parts, arrays)}
    return {**ckpt_dict, **prepared}


class _Loaded:
    """A dict of Parameters as a Checkpoint."""

    place = "checkpoint"

    def __init__(self, ckpt_dict):
        self._parameters = {name: value for name, value in ckpt_dict.items() if isinstance(value, Tensor)}
        self.tensors = {name: Stored(tuple(parameter.shape), str(parameter.dtype).lower())
                        for name, parameter in self._parameters.items()}

    def read(self, name, first, last):
        """Rows `first` to `last`, as a torch tensor of float32."""
        import torch

        return torch.from_numpy(self._parameters[name][first:last].float().asnumpy())


def _one_array(weights):
    """
    Places for weights side by side in one array, which the parameters then share: name -> np.ndarray.

    One large array lies in large pages of memory, and every weight in it begins at a cache line: without the one or
    the other, reading the weights, which is what a decoding step does, takes a fifth to a third longer.
    """
    types = {name: np.dtype(str(parameter.dtype).lower()) for name, parameter in weights.items()}
    sizes = {name: parameter.size * types[name].itemsize for name, parameter in weights.items()}
    array = np.empty(sum(_aligned(size) for size in sizes.values()) + ALIGNMENT, np.uint8)
    offset, places = -array.ctypes.data % ALIGNMENT, {}
    for name, parameter in weights.items():
        places[name] = array[offset:offset + sizes[name]].view(types[name]).reshape(parameter.shape)
        offset += _aligned(sizes[name])
    return places


def _aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def _copy(parameter, checkpoint, places):
    """Read an ordinary weight, a few rows at a time where it has a place."""
    name = parameter.name
    target = places.get(name)
    if target is None:
        parameter.set_data(Tensor(_rows(checkpoint, name), parameter.dtype))
        return
    step = max(1, CHUNK_BYTES // (target[0].size * 4))
    for row in range(0, len(target), step):
        target[row:row + step] = _rows(checkpoint, name, row, min(row + step, len(target)))
    parameter.set_data(Tensor.from_numpy(target))


def _set(parameter, array, places):
    target = places.get(parameter.name)
    if target is None:
        parameter.set_data(Tensor(array, parameter.dtype))
        return
    target[...] = array
    parameter.set_data(Tensor.from_numpy(target))


def _rows(checkpoint, name, first=0, last=None):
    """Rows of a tensor as a numpy array, floats as float32."""
    return checkpoint.array(name, first, checkpoint.tensors[name].shape[0] if last is None else last)


def _weights(model):
    return {parameter.name: parameter for parameter in model.get_parameters()
            if not parameter.name.endswith("_cache")}


def _quantized(model):
    """The cells whose weights are packed."""
    return [cell for _, cell in model.cells_and_names() if hasattr(cell, "packed_shapes")]


def _expected(model):
    """Name -> (shape, types) as a checkpoint has them."""
    expected = {name: (parameter.shape, FLOATS) for name, parameter in _weights(model).items()}
    for cell in _quantized(model):
        for kind, shape in cell.packed_shapes.items():
            dtype = PACKED_TYPES.get(kind)
            expected[getattr(cell, kind).name] = shape, (dtype,) if dtype else FLOATS
    return expected


def _hint(name):
    wide = {f".{module.ms}." for family in FAMILIES.values() for module in family.layer if "ffn" in module.shape}
    if not any(part in name for part in wide):
        return ""
    return " (QwenConfig's intermediate_size is twice the width of w1, LlamaConfig's is the width)"
