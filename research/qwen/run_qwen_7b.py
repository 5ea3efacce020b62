"""`python run_qwen_7b.py --help` says what it does; `qwen-ms predict` is the same command, for a Qwen of any size."""
import sys

from qwen_mindspore.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
