"""Convert a Qwen checkpoint from Hugging Face to MindSpore."""
import argparse
from pathlib import Path

import checkpoint_io
import name_map

DEFAULT_OUTPUT = "./run/qwen_7b_ms.ckpt"


def convert_weight(torch_ckpt_dir, mindspore_ckpt_path=DEFAULT_OUTPUT, dtype=None, overwrite=False):
    """Convert a Hugging Face Qwen folder to a MindSpore checkpoint, a few rows at a time.

    Args:
        torch_ckpt_dir: folder with config.json and the weights, in one or more `.safetensors` or else `.bin`.
        mindspore_ckpt_path: what to write: one file if it ends in `.ckpt` or `.safetensors`, else a folder of
            safetensors shards. config.json, generation_config.json and qwen.tiktoken travel along.
        dtype: "float32", "float16", "bfloat16", or None for the type each tensor is stored in.
        overwrite: replace an older checkpoint at the same place.

    Returns:
        The Path written.

    Raises:
        ValueError: a tensor is missing, extra or misshapen, a file is damaged, or it is no unquantised Qwen.
        OSError: a file is missing, something is in the way, or the disk is full.
    """
    folder = Path(torch_ckpt_dir)
    config = checkpoint_io.read_config(folder / "config.json")
    files = checkpoint_io.find_files(folder, ("model*.safetensors", "pytorch_model*.bin"))
    checkpoint = checkpoint_io.Checkpoint(files)
    for name in checkpoint_io.check_tensors(checkpoint, name_map.hf_shapes(config)):
        if not name_map.HARMLESS.search(name):
            raise ValueError(f"{folder}: {name} is not a tensor of the Qwen that config.json describes: "
                             "is it the config.json of this checkpoint?")
    return checkpoint_io.save(checkpoint, name_map.hf_to_ms(config), Path(mindspore_ckpt_path),
                              checkpoint_io.read_sidecars(folder), dtype, overwrite)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_ckpt_dir", required=True, help="folder of the Hugging Face model")
    parser.add_argument("--mindspore_ckpt_path", default=DEFAULT_OUTPUT,
                        help="NAME.ckpt, NAME.safetensors, or a folder for shards (default: %(default)s)")
    checkpoint_io.add_common_arguments(parser)
    checkpoint_io.run(convert_weight, parser)


if __name__ == "__main__":
    main()
