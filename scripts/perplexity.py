"""`python scripts/perplexity.py --help` says what it does; `qwen-ms perplexity` is the same command."""
import sys

from qwen_mindspore.cli.perplexity import main

if __name__ == "__main__":
    sys.exit(main())
