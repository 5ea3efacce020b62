"""`python run_qwen_7b_chat.py --help` says what it does; `qwen-ms chat` is the same command, for a Qwen of any size."""
import sys

from qwen_mindspore.cli.chat import main

if __name__ == "__main__":
    sys.exit(main())
