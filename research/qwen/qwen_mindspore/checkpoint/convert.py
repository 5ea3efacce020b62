"""Converting a Qwen between Hugging Face's checkpoints and MindSpore's, a few rows at a time."""
import re
from pathlib import Path

from qwen_mindspore.checkpoint import gptq
from qwen_mindspore.checkpoint.files import (
    HUGGING_FACE,
    Checkpoint,
    check_tensors,
    checkpoint_files,
    read_config,
    read_sidecars,
)
from qwen_mindspore.checkpoint.names import hf_to_ms, ms_to_hf
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.checkpoint.save import save
from qwen_mindspore.common.files import to_json
from qwen_mindspore.common.progress import say
from qwen_mindspore.families import family_of

__all__ = ["DEFAULT_OUTPUT", "convert_reversed", "convert_weight", "save_hf"]

DEFAULT_OUTPUT = "./run/qwen_7b_ms.ckpt"


def convert_weight(torch_ckpt_dir, mindspore_ckpt_path=DEFAULT_OUTPUT, dtype=None, overwrite=False, dequantize=False):
    """Convert a Hugging Face Qwen folder to a MindSpore checkpoint, a few rows at a time.

    A model that AutoGPTQ quantized stays quantized: see `checkpoint.gptq` and `checkpoint.packing`; config.json then
    has `quantization` in place of `quantization_config`. Of a quantized model a tensor at a time is in memory.

    Args:
        torch_ckpt_dir: folder with config.json and the weights, in one or more `.safetensors` or else `.bin`, and
            with quantize_config.json if AutoGPTQ wrote one.
        mindspore_ckpt_path: what to write: one file if it ends in `.ckpt` or `.safetensors`, else a folder of
            safetensors shards. config.json, generation_config.json and qwen.tiktoken travel along.
        dtype: "float32", "float16", "bfloat16", or None for the type each tensor is stored in. Packed weights and
            their scales stay as they are.
        overwrite: replace an older checkpoint at the same place.
        dequantize: write an ordinary checkpoint of a quantized model, in float16 unless `dtype` differs.

    Returns:
        The Path written.

    Raises:
        ValueError: a tensor is missing, extra or misshapen, a file is damaged, or it is no Qwen.
        OSError: a file is missing, something is in the way, or the disk is full.
    """
    folder = Path(torch_ckpt_dir)
    repair(folder)
    config = read_config(folder / "config.json")
    sidecars = read_sidecars(folder)
    settings = gptq.read_settings(folder, config)
    checkpoint = Checkpoint(checkpoint_files(folder, HUGGING_FACE))
    if settings is None:
        _check_unquantized(checkpoint, dequantize)
    else:
        del sidecars["config.json"]
        config.pop("quantization_config", None)
        checkpoint = gptq.PackedCheckpoint(checkpoint, config, settings)
        if dequantize:
            checkpoint, dtype = gptq.DequantizedCheckpoint(checkpoint), dtype or "float16"
        else:
            config["quantization"] = checkpoint.quantization
        sidecars["config.json"] = to_json(config)
    harmless = re.compile(family_of(config).buffers)
    for name in check_tensors(checkpoint, ms_to_hf(config)):
        if not harmless.search(name):
            raise ValueError(f"{folder}: {name} is not a tensor of the Qwen that config.json describes: "
                             "is it the config.json of this checkpoint?")
    return save(checkpoint, hf_to_ms(config), Path(mindspore_ckpt_path), sidecars, dtype, overwrite)


def _check_unquantized(checkpoint, dequantize):
    """ValueError where an unquantized model is meant to be dequantized, or has quantized tensors."""
    if dequantize:
        raise ValueError(f"{checkpoint.place}: nothing to dequantize, the model is not quantized")
    for name in checkpoint.tensors:
        if name.endswith(".qweight"):
            raise ValueError(f"{checkpoint.place}: {name} is quantized, but neither quantize_config.json nor "
                             "config.json says how: fetch quantize_config.json")


def convert_reversed(mindspore_ckpt_path, torch_ckpt_path, config=None, dtype=None, overwrite=False):
    """Convert a MindSpore Qwen checkpoint to a Hugging Face folder, a few rows at a time.

    A quantized one becomes what AutoGPTQ would have written, see `checkpoint.gptq`, with quantize_config.json.

    Args:
        mindspore_ckpt_path: a `.ckpt` or `.safetensors` file, or a folder of either. What is not a weight of
            the model (optimizer state, step counters, caches) is left out.
        torch_ckpt_path: folder to write: safetensors, config.json, generation_config.json and qwen.tiktoken.
        config: Hugging Face config.json of the model; default: the one beside the checkpoint.
        dtype: "float32", "float16", "bfloat16", or None for the type each tensor is stored in. Packed weights and
            their scales stay as they are.
        overwrite: replace an older checkpoint at the same place.

    Returns:
        The Path written.

    Raises:
        ValueError: a tensor is missing or misshapen, a file is damaged, config.json is not Qwen's, or AutoGPTQ's
            format can't hold a quantized model.
        OSError: a file is missing, something is in the way, or the disk is full.
    """
    source = Path(mindspore_ckpt_path)
    files = checkpoint_files(source)
    folder = source if source.is_dir() else source.parent
    config_path = Path(config) if config else folder / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{config_path} is missing: give the Hugging Face config.json with --config")
    settings = read_config(config_path)
    checkpoint = Checkpoint(files)
    extra = check_tensors(checkpoint, hf_to_ms(settings))
    if extra:
        say("convert_reversed", f"left out {len(extra)} entries that are not weights of the model, like {extra[0]}")
    sidecars = read_sidecars(config_path.parent, folder)
    sidecars["config.json"] = config_path.read_bytes()
    return save_hf(checkpoint, settings, Path(torch_ckpt_path), sidecars, dtype, overwrite)


def save_hf(checkpoint, config, output, sidecars, dtype=None, overwrite=False):
    """Write a checkpoint, whose names are MindSpore's, as a Hugging Face folder: see `checkpoint.files.save`."""
    tensors = ms_to_hf(config)
    if config.get("quantization"):
        checkpoint = gptq.GptqCheckpoint(checkpoint, config)
        tensors = checkpoint.table
        unpacked = {key: value for key, value in config.items() if key != "quantization"}
        sidecars = sidecars | {
            "config.json": to_json(unpacked | {"quantization_config": checkpoint.settings}),
            "quantize_config.json": to_json(checkpoint.settings)}
    return save(checkpoint, tensors, output, sidecars, dtype, overwrite, layout="pt")
