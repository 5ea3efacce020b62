"""
Audit the NPU's graphs of a config, on a machine without an NPU:

    python scripts/audit_ascend.py --config configs/predict_qwen_7b.yaml --dtype bfloat16 --soc 910B

The graphs of prefill, of resuming (a prefill of sequences whose beginning is cached) and of decoding are built with the
`ascend` kernels, from the shapes of the weights alone, and read back as MindSpore's front end leaves them; what its
Ascend back end fuses after that is not seen, and nothing is run. The report on stdout names every primitive and the
documentation that lists the product, every cast and transpose, the bytes that a decode step reads, and the tokens per
second that the product's memory allows.

Exit code 1, and a line for each finding, where a primitive or a type is not documented for the product, a weight is
read twice in one decode step, a weight is cast or transposed at run time, or a graph does not write its caches.
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.common.progress import say


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a YAML, see configs/")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="default: what the YAML says")
    parser.add_argument("--soc", default="910B", choices=["910A", "910B"])
    parser.add_argument("--layers", type=int, default=2, metavar="N",
                        help="layers to build; what the others cost is what the last of them does (default: 2)")
    parser.add_argument("--batch_size", type=int, default=1, metavar="B", help="sequences decoded at once (default: 1)")
    parser.add_argument("--context_length", type=int, metavar="T",
                        help="tokens of each sequence when the step is counted (default: 2048, or seq_length)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    args = parser.parse_args(argv)
    if args.layers < 2:
        parser.error("--layers: at least 2, the cost of one layer is a difference")
    for option in ("batch_size", "context_length"):
        if (getattr(args, option) or 1) < 1:
            parser.error(f"--{option}: expected a positive number, found {getattr(args, option)}")
    return args


def main(argv=None):
    """The command. Returns the exit code: 1 where there are findings, 2 where the audit can't be made."""
    args = parse_args(argv)

    def work(answers):
        from qwen_mindspore.audit.ascend import audit, load_config, render

        config = load_config(args.config, args.dtype, args.soc, args.batch_size)
        report = audit(config, args.layers, args.context_length, lambda text: say("audit_ascend", text))
        print(json.dumps(report, indent=2) if args.json else render(report), file=answers)
        return int(bool(report["findings"]))

    with tempfile.TemporaryDirectory() as logs:
        os.environ.setdefault("LOG_MF_PATH", logs)
        return run_command("audit_ascend", work, failed=2)
