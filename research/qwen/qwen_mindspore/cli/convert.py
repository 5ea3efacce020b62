"""Convert a Qwen checkpoint from Hugging Face to MindSpore."""
import argparse
from pathlib import Path

from qwen_mindspore.checkpoint import files as checkpoint_io
from qwen_mindspore.checkpoint import gptq
from qwen_mindspore.checkpoint import names as name_map

DEFAULT_OUTPUT = "./run/qwen_7b_ms.ckpt"
FILES = ("model*.safetensors", "gptq_model*.safetensors", "pytorch_model*.bin", "gptq_model*.bin")


def convert_weight(torch_ckpt_dir, mindspore_ckpt_path=DEFAULT_OUTPUT, dtype=None, overwrite=False, dequantize=False):
    """Convert a Hugging Face Qwen folder to a MindSpore checkpoint, a few rows at a time.

    A model that AutoGPTQ quantised stays quantised: see `checkpoint.gptq` and `checkpoint.packing`; config.json then has
    `quantization` in place of `quantization_config`. Of a quantised model a tensor at a time is in memory.

    Args:
        torch_ckpt_dir: folder with config.json and the weights, in one or more `.safetensors` or else `.bin`, and
            with quantize_config.json if AutoGPTQ wrote one.
        mindspore_ckpt_path: what to write: one file if it ends in `.ckpt` or `.safetensors`, else a folder of
            safetensors shards. config.json, generation_config.json and qwen.tiktoken travel along.
        dtype: "float32", "float16", "bfloat16", or None for the type each tensor is stored in. Packed weights and
            their scales stay as they are.
        overwrite: replace an older checkpoint at the same place.
        dequantize: write an ordinary checkpoint of a quantised model, in float16 unless `dtype` differs.

    Returns:
        The Path written.

    Raises:
        ValueError: a tensor is missing, extra or misshapen, a file is damaged, or it is no Qwen.
        OSError: a file is missing, something is in the way, or the disk is full.
    """
    folder = Path(torch_ckpt_dir)
    config = checkpoint_io.read_config(folder / "config.json")
    sidecars = checkpoint_io.read_sidecars(folder)
    settings = gptq.read_settings(folder, config)
    checkpoint = checkpoint_io.Checkpoint(checkpoint_io.find_files(folder, FILES))
    if settings is None:
        _check_unquantised(checkpoint, dequantize)
    else:
        del sidecars["config.json"]
        config.pop("quantization_config", None)
        checkpoint = gptq.PackedCheckpoint(checkpoint, config, settings)
        if dequantize:
            checkpoint, dtype = gptq.DequantisedCheckpoint(checkpoint), dtype or "float16"
        else:
            config["quantization"] = checkpoint.quantization
        sidecars["config.json"] = checkpoint_io.to_json(config)
    for name in checkpoint_io.check_tensors(checkpoint, name_map.ms_to_hf(config)):
        if not name_map.HARMLESS.search(name):
            raise ValueError(f"{folder}: {name} is not a tensor of the Qwen that config.json describes: "
                             "is it the config.json of this checkpoint?")
    return checkpoint_io.save(checkpoint, name_map.hf_to_ms(config), Path(mindspore_ckpt_path), sidecars, dtype,
                              overwrite)


def _check_unquantised(checkpoint, dequantize):
    """ValueError where an unquantised model is meant to be dequantised, or has quantised tensors."""
    if dequantize:
        raise ValueError(f"{checkpoint.place}: nothing to dequantise, the model is not quantised")
    for name in checkpoint.tensors:
        if name.endswith(".qweight"):
            raise ValueError(f"{checkpoint.place}: {name} is quantised, but neither quantize_config.json nor "
                             "config.json says how: fetch quantize_config.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_ckpt_dir", required=True, help="folder of the Hugging Face model")
    parser.add_argument("--mindspore_ckpt_path", default=DEFAULT_OUTPUT,
                        help="NAME.ckpt, NAME.safetensors, or a folder for shards (default: %(default)s)")
    parser.add_argument("--dequantize", action="store_true", help="write ordinary weights of a quantised model")
    checkpoint_io.add_common_arguments(parser)
    checkpoint_io.run(convert_weight, parser)


if __name__ == "__main__":
    main()
