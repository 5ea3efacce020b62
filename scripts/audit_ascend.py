"""`python scripts/audit_ascend.py --help` says what it does; `qwen-ms audit` is the same command."""
import sys

from qwen_mindspore.cli.audit import main

if __name__ == "__main__":
    sys.exit(main())
