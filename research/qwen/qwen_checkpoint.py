"""Loading a MindSpore checkpoint into a Qwen, with every weight accounted for."""
from pathlib import Path

import mindspore as ms
from mindformers.tools.logger import logger

__all__ = ["checkpoint_files", "check_weights", "load_weights"]


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


def check_weights(model, checkpoint, partial=False):
    """
    Compare the names and shapes of a checkpoint with the weights of a model; caches aside.

    Args:
        model (Cell): The model.
        checkpoint (dict): Name -> Parameter. What the model has no place for (optimizer state, say) is left alone.
        partial (bool): Whether this is one file of several, which need not hold every weight.

    Raises:
        ValueError: A weight is missing or of another shape.
    """
    weights = _weights(model)
    missing = [name for name in weights if name not in checkpoint]
    if len(missing) == len(weights) or (missing and not partial):
        hint = ""
        if any(name.startswith("transformer.h.") for name in checkpoint):
            hint = "; these are Hugging Face names: convert it with convert/convert_weight.py first"
        raise ValueError(f"checkpoint: {len(missing)} of {len(weights)} weights are missing, the first is "
                         f"{missing[0]}{hint}")
    for name, parameter in weights.items():
        if name in checkpoint and tuple(checkpoint[name].shape) != tuple(parameter.shape):
            raise ValueError(f"checkpoint: {name}: expected {tuple(parameter.shape)} by the config, found "
                             f"{tuple(checkpoint[name].shape)}: is this the config of that checkpoint?{_hint(name)}")


def load_weights(model, path):
    """
    Load a checkpoint, one file at a time, converting to the type of the model's parameters.

    Args:
        model (Cell): The model.
        path (str): See `checkpoint_files`.

    Raises:
        FileNotFoundError, ValueError: See `checkpoint_files` and `check_weights`; the message names the file.
    """
    missing = set(_weights(model))
    files = checkpoint_files(path)
    for file in files:
        checkpoint = ms.load_checkpoint(str(file), format=file.suffix[1:])
        try:
            check_weights(model, checkpoint, partial=len(files) > 1)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        ms.load_param_into_net(model, checkpoint)
        missing -= set(checkpoint)
    if missing:
        raise ValueError(f"checkpoint {path}: {len(missing)} weights are in none of its {len(files)} files, the first "
                         f"is {min(missing)}")
    logger.info("Weights are loaded from %s.", path)


def _weights(model):
    return {parameter.name: parameter for parameter in model.get_parameters()
            if not parameter.name.endswith("_cache")}


def _hint(name):
    if ".feed_forward." not in name:
        return ""
    return " (QwenConfig's intermediate_size is twice the width of w1, LlamaConfig's is the width)"
