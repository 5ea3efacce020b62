"""`python scripts/benchmark.py --help` says what it does; `qwen-ms benchmark` is the same command."""
import sys

from qwen_mindspore.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
