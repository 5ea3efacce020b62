"""`python convert/convert_reversed.py --help` says what it does; `qwen-ms export` is the same command."""
import sys

from qwen_mindspore.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
