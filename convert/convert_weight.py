"""`python convert/convert_weight.py --help` says what it does; `qwen-ms convert` is the same command."""
import sys

from qwen_mindspore.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
