"""`python scripts/batch_generate.py --help` says what it does; `qwen-ms batch` is the same command."""
import sys

from qwen_mindspore.cli.batch import main

if __name__ == "__main__":
    sys.exit(main())
