"""`python scripts/serve.py --help` says what it does; `qwen-ms serve` is the same command."""
import sys

from qwen_mindspore.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
