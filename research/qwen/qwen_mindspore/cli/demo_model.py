"""Make the demo model, a small trained chat model as a Hugging Face Qwen folder."""
import argparse

from qwen_mindspore.checkpoint.demo_model import MODEL_NAME, make_demo_model
from qwen_mindspore.cli.command import run_command


def main(argv=None):
    """The command: the folder is all that it prints on standard output. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help=f"folder to write (default: CACHE/models/{MODEL_NAME})")
    parser.add_argument("--cache", help="folder that keeps the package (default: $XDG_CACHE_HOME/qwen-mindspore or "
                                        "~/.cache/qwen-mindspore)")
    args = parser.parse_args(argv)
    return run_command("make_demo_model", lambda answers: print(make_demo_model(args.output, args.cache), file=answers),
                       interrupted="interrupted; nothing was written")
