"""
Perplexity of a text at given context lengths, for any config and checkpoint, quantized or not:

    python scripts/perplexity.py --config Y --load_checkpoint C --data TEXT --context 512,1024,2048

The text is cut into pieces of a context, and each token of a piece is predicted from those before it in the piece. With
--stride N a piece begins every N tokens and its last N are predicted, which then have at least context - N tokens
before them; and every context predicts the same tokens. --compare adds a curve with other settings of the model, or
of another checkpoint:

    --compare load_checkpoint=int4 --compare use_dynamic_ntk=false,use_logn_attn=false --plot FILE.png
"""
import argparse
from pathlib import Path

from qwen_mindspore.cli.command import give_report, run_command
from qwen_mindspore.cli.options import add_common_options, positive_int, positive_ints, settle_model
from qwen_mindspore.common.deferred_imports import import_mindformers
from qwen_mindspore.common.plots import output_problem


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, "predict_qwen_7b.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="TEXT",
                        help='.jsonl with {"text": ...} lines, or plain text')
    parser.add_argument("--context", type=_contexts, default=[512, 1024, 2048], metavar="N,...",
                        help="tokens of a piece (default: 512,1024,2048)")
    parser.add_argument("--stride", type=positive_int, metavar="N",
                        help="tokens from one piece to the next (default: the context, so that pieces don't overlap)")
    parser.add_argument("--max_tokens", type=positive_int, metavar="N", help="take only the first N tokens of the text")
    parser.add_argument("--compare", type=_changes, action="append", default=[], metavar="KEY=VALUE,...",
                        help="another curve, with these settings of the model's config, or load_checkpoint=C")
    parser.add_argument("--use_past", action="store_true",
                        help="compute through the key/value cache, as a quantized cache always is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE.png",
                        help="draw perplexity against context length (needs matplotlib)")
    args = parser.parse_args(argv)
    problem = output_problem(args.json, args.plot)
    if args.stride and args.stride > min(args.context):
        problem = f"--stride {args.stride}: more than the context {min(args.context)} leaves tokens out"
    if problem:
        parser.error(problem)
    return args


def _contexts(text):
    contexts = sorted(set(positive_ints(text)))
    if contexts[0] < 2:
        raise argparse.ArgumentTypeError("expected at least 2 tokens: the first of a piece is not predicted")
    return contexts


def _changes(text):
    """{key: value} of KEY=VALUE,...; values as a YAML has them."""
    import yaml

    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and equals and value for key, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE,KEY=VALUE, found {text}")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        settle_model(args)
        import_mindformers()
        from qwen_mindspore.evaluate.perplexity import measure, plot, table

        give_report(measure(args), args, answers, table, plot)

    return run_command("perplexity", work, args.verbose)
