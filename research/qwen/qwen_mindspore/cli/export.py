"""Convert a Qwen checkpoint from MindSpore to Hugging Face."""
import argparse
import sys
from pathlib import Path

from qwen_mindspore.checkpoint import files as checkpoint_io
from qwen_mindspore.checkpoint import gptq
from qwen_mindspore.checkpoint import names as name_map


def convert_reversed(mindspore_ckpt_path, torch_ckpt_path, config=None, dtype=None, overwrite=False):
    """Convert a MindSpore Qwen checkpoint to a Hugging Face folder, a few rows at a time.

    A quantised one becomes what AutoGPTQ would have written, see `checkpoint.gptq`, with quantize_config.json.

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
            format can't hold a quantised model.
        OSError: a file is missing, something is in the way, or the disk is full.
    """
    source = Path(mindspore_ckpt_path)
    files = _files(source)
    folder = source if source.is_dir() else source.parent
    config_path = Path(config) if config else folder / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{config_path} is missing: give the Hugging Face config.json with --config")
    settings = checkpoint_io.read_config(config_path)
    checkpoint = checkpoint_io.Checkpoint(files)
    extra = checkpoint_io.check_tensors(checkpoint, name_map.hf_to_ms(settings))
    if extra:
        print(f"convert_reversed: left out {len(extra)} entries that are not weights of the model, "
              f"like {extra[0]}", file=sys.stderr)
    sidecars = checkpoint_io.read_sidecars(config_path.parent, folder)
    sidecars["config.json"] = config_path.read_bytes()
    return save_hf(checkpoint, settings, Path(torch_ckpt_path), sidecars, dtype, overwrite)


def save_hf(checkpoint, config, output, sidecars, dtype=None, overwrite=False):
    """Write a checkpoint, whose names are MindSpore's, as a Hugging Face folder: see `checkpoint.files.save`."""
    tensors = name_map.ms_to_hf(config)
    if config.get("quantization"):
        checkpoint = gptq.GptqCheckpoint(checkpoint, config)
        tensors = checkpoint.table
        unpacked = {key: value for key, value in config.items() if key != "quantization"}
        sidecars = sidecars | {
            "config.json": checkpoint_io.to_json(unpacked | {"quantization_config": checkpoint.settings}),
            "quantize_config.json": checkpoint_io.to_json(checkpoint.settings)}
    return checkpoint_io.save(checkpoint, tensors, output, sidecars, dtype, overwrite, layout="pt")


def _files(source):
    if source.is_dir():
        return checkpoint_io.find_files(source, ("*.safetensors", "*.ckpt"))
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: name a .ckpt or .safetensors file, or their folder")
    if source.suffix not in (".ckpt", ".safetensors"):
        raise ValueError(f"{source}: not a MindSpore checkpoint, expected .ckpt or .safetensors")
    return [source]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mindspore_ckpt_path", required=True,
                        help="a .ckpt or .safetensors file, or a folder of them")
    parser.add_argument("--torch_ckpt_path", required=True, help="folder to write")
    parser.add_argument("--config", help="Hugging Face config.json (default: the one beside the checkpoint)")
    checkpoint_io.add_common_arguments(parser)
    checkpoint_io.run(convert_reversed, parser)


if __name__ == "__main__":
    main()
