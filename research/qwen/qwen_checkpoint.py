"""Loading a MindSpore checkpoint into a Qwen, with every weight accounted for."""
from pathlib import Path

import mindspore as ms
import numpy as np
from mindformers.tools.logger import logger
from mindspore import Tensor

from qwen_checkpoint_formats import READERS

__all__ = ["checkpoint_files", "check_weights", "load_weights"]

CHUNK_BYTES = 64 * 2**20
ALIGNMENT = 16  # floats: a cache line


def checkpoint_files(path):
    """
    The files of a checkpoint: the file itself, or the `.safetensors` files, else the `.ckpt` files, of a folder.

    Args:
        path (str): A `.ckpt` or `.safetensors` file, or a folder, as `convert_weight.py` writes them.

    Returns:
        list[Path], sorted by name.

    Raises:
        FileNotFoundError: Nothing there.
        ValueError: A file of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: no such file or folder")
    if path.is_file():
        if path.suffix not in (".ckpt", ".safetensors"):
            raise ValueError(f"checkpoint {path}: expected a .ckpt or .safetensors file, or a folder of them")
        return [path]
    for suffix in (".safetensors", ".ckpt"):
        files = sorted(path.glob(f"*{suffix}"))
        if files:
            return files
    raise FileNotFoundError(f"checkpoint {path}: no .safetensors or .ckpt file in this folder")


def check_weights(model, shapes, place="checkpoint"):
    """
    Compare the names and shapes of a checkpoint with the weights of a model; caches aside.

    Args:
        model (Cell): The model.
        shapes (dict): Name -> shape. What the model has no place for (optimizer state, say) is left alone.
        place (str): What the message calls the checkpoint.

    Raises:
        ValueError: A weight is missing or of another shape.
    """
    weights = _weights(model)
    missing = [name for name in weights if name not in shapes]
    if missing:
        hint = ""
        if any(name.startswith("transformer.h.") for name in shapes):
            hint = "; these are Hugging Face names: convert it with convert/convert_weight.py first"
        raise ValueError(f"{place}: {len(missing)} of {len(weights)} weights are missing, the first is "
                         f"{missing[0]}{hint}")
    for name, parameter in weights.items():
        if tuple(shapes[name]) != tuple(parameter.shape):
            raise ValueError(f"{place}: {name}: expected {tuple(parameter.shape)} by the config, found "
                             f"{tuple(shapes[name])}: is this the config of that checkpoint?{_hint(name)}")


def load_weights(model, path):
    """
    Load a checkpoint, a few rows at a time, converting to the type of the model's parameters.

    Args:
        model (Cell): The model.
        path (str): See `checkpoint_files`.

    Raises:
        FileNotFoundError, ValueError: See `checkpoint_files` and `check_weights`; a file is damaged.
    """
    readers = {}
    for file in checkpoint_files(path):
        reader = READERS[file.suffix](file)
        readers.update(dict.fromkeys(reader.tensors, reader))
    check_weights(model, {name: reader.tensors[name].shape for name, reader in readers.items()},
                  f"checkpoint {path}")
    weights = _weights(model)
    if all(parameter.dtype == ms.float32 for parameter in weights.values()):
        _load_into_one_array(weights, readers)
    else:
        for name, parameter in weights.items():
            rows = readers[name].read(name, 0, parameter.shape[0])
            parameter.set_data(Tensor(rows.float().numpy(), parameter.dtype))
    logger.info("Weights are loaded from %s.", path)


def _load_into_one_array(weights, readers):
    """
    Read float32 weights side by side into one array, which the parameters then share.

    One large array lies in large pages of memory, and every weight in it begins at a cache line: without the one or
    the other, reading the weights, which is what a decoding step does, takes a fifth to a third longer.
    """
    sizes = [-(-parameter.size // ALIGNMENT) * ALIGNMENT for parameter in weights.values()]
    array = np.empty(sum(sizes) + ALIGNMENT, np.float32)
    offset = -array.ctypes.data % (ALIGNMENT * array.itemsize) // array.itemsize
    for (name, parameter), size in zip(weights.items(), sizes):
        target = array[offset:offset + parameter.size].reshape(parameter.shape)
        step = max(1, CHUNK_BYTES // (target[0].size * target.itemsize))
        for row in range(0, len(target), step):
            chunk = readers[name].read(name, row, min(row + step, len(target)))
            target[row:row + step] = chunk.float().numpy()
        parameter.set_data(Tensor.from_numpy(target))
        offset += size


def _weights(model):
    return {parameter.name: parameter for parameter in model.get_parameters()
            if not parameter.name.endswith("_cache")}


def _hint(name):
    if ".feed_forward." not in name:
        return ""
    return " (QwenConfig's intermediate_size is twice the width of w1, LlamaConfig's is the width)"
