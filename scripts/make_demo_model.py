"""`python scripts/make_demo_model.py --help` says what it does."""
import sys

from qwen_mindspore.cli.demo_model import main

if __name__ == "__main__":
    sys.exit(main())
