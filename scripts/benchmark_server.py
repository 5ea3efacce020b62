"""`python scripts/benchmark_server.py --help` says what it does; `qwen-ms benchmark-server` is the same command."""
import sys

from qwen_mindspore.cli.benchmark_server import main

if __name__ == "__main__":
    sys.exit(main())
