"""Convert a Qwen checkpoint from Hugging Face to MindSpore."""
import argparse

from qwen_mindspore.checkpoint.convert import DEFAULT_OUTPUT, convert_weight
from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import add_output_options


def main(argv=None):
    """The command: the path that was written is all that it prints on standard output. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_ckpt_dir", required=True, help="folder of the Hugging Face model")
    parser.add_argument("--mindspore_ckpt_path", default=DEFAULT_OUTPUT,
                        help="NAME.ckpt, NAME.safetensors, or a folder for shards (default: %(default)s)")
    parser.add_argument("--dequantize", action="store_true", help="write ordinary weights of a quantized model")
    add_output_options(parser)
    args = vars(parser.parse_args(argv))
    return run_command("convert_weight", lambda answers: print(convert_weight(**args), file=answers),
                       interrupted="interrupted, nothing was written")
