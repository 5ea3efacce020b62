"""`python scripts/quantize.py --help` says what it does; `qwen-ms quantize` is the same command."""
import sys

from qwen_mindspore.cli.quantize import main

if __name__ == "__main__":
    sys.exit(main())
