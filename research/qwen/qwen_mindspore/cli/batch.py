"""
Answer every row of a file: `python batch_generate.py --config Y --load_checkpoint C --input IN --output OUT`.

Resumes where it stopped when it is started again with the same arguments.
"""
import argparse

from qwen_mindspore.batch.records import FORMATS
from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import (
    add_common_options,
    add_generation_options,
    generation_options,
    positive_int,
    ray_resources,
    settle_model,
    utf8,
)
from qwen_mindspore.common.deferred_imports import import_mindformers


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b_chat.yaml")
    files = parser.add_argument_group("files")
    files.add_argument("--input", required=True, metavar="FILE", help="JSONL, JSON, CSV, TSV, Parquet, or text with a "
                                                                      "prompt on each line")
    files.add_argument("--output", required=True, metavar="FILE", help="JSONL in the order of the input; rows that "
                                                                       "can't be answered go to FILE.errors.jsonl")
    files.add_argument("--input_format", choices=list(FORMATS), help="default: by the input's name")
    files.add_argument("--overwrite", action="store_true", help="start afresh, replacing what is there")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--prompt_column", metavar="NAME", help="default: prompt, messages or query")
    rows.add_argument("--id_column", metavar="NAME", default="id", help="default: id; without one the row's number")
    rows.add_argument("--system", type=utf8, metavar="TEXT", help="the system message of conversations that have none")
    rows.add_argument("--parse_special", action="store_true", help="parse control tokens that are written in a prompt; "
                                                                   "only with chat_format raw")
    add_generation_options(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=positive_int, default=16, metavar="N", help="rows at once; default: 16")
    speed.add_argument("--cache_tokens", type=positive_int, metavar="N",
                       help="tokens that the key/value cache holds, of all rows at once; default: 1024 a row, and at "
                            "least seq_length")
    ray = parser.add_argument_group("Ray")
    ray.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster; local: over this machine")
    ray.add_argument("--ray_actors", type=positive_int, default=1, metavar="N", help="models; default: 1")
    ray.add_argument("--ray_resources", type=ray_resources, default=None, metavar="NAME=N,...",
                     help="what a model takes; default: NPU=1 on Ascend, on the CPU its share of a machine's CPUs")
    args = parser.parse_args(argv)
    args.generation = generation_options(args)
    return args


def main(argv=None):
    """The command. Returns the exit code: 1 where no row at all could be answered."""
    args = parse_args(argv)

    def work(_):
        settle_model(args)
        import_mindformers()
        from qwen_mindspore.batch.journal import ANSWER, ERROR
        from qwen_mindspore.batch.run import generate

        counts = generate(args).counts
        return int(counts[ERROR] and not counts[ANSWER])

    return run_command("batch_generate", work, args.verbose, interrupted="stopped; the same command resumes here")
