"""Convert a Qwen checkpoint from MindSpore to Hugging Face."""
import argparse

from qwen_mindspore.checkpoint.convert import convert_reversed
from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import add_output_options


def main(argv=None):
    """The command: the path that was written is all that it prints on standard output. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mindspore_ckpt_path", required=True,
                        help="a .ckpt or .safetensors file, or a folder of them")
    parser.add_argument("--torch_ckpt_path", required=True, help="folder to write")
    parser.add_argument("--config", help="Hugging Face config.json (default: the one beside the checkpoint)")
    add_output_options(parser)
    args = vars(parser.parse_args(argv))
    return run_command("convert_reversed", lambda answers: print(convert_reversed(**args), file=answers),
                       interrupted="interrupted, nothing was written")
