"""`python scripts/cache.py --help` says what it does; `qwen-ms cache` is the same command."""
import sys

from qwen_mindspore.cli.cache import main

if __name__ == "__main__":
    sys.exit(main())
