"""
What the server costs beside its bare engine, on the same prompts in turns: `python scripts/benchmark_server.py`.

Takes the options of scripts/serve.py. Tokens/s are those of all requests together, from the first question to the last
token, prompts included.
"""
import argparse
from pathlib import Path

from qwen_mindspore.cli import serve
from qwen_mindspore.cli.command import give_report, run_command
from qwen_mindspore.cli.options import config_of, positive_int, positive_ints, settle_model

NAME = "benchmark_server"


def parse_args(argv=None):
    """(the options of this command, those of the server)."""
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=positive_ints, default=[1, 4, 16], metavar="N,...",
                        help="requests at once (default: 1,4,16)")
    parser.add_argument("--prompt_tokens", type=positive_int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--new_tokens", type=positive_int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="R", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    args, rest = parser.parse_known_args(argv)
    args.plot = None
    return args, serve.parse_args(rest)


def main(argv=None):
    """The command. Returns the exit code."""
    args, options = parse_args(argv)

    def work(answers):
        serve.settle_original(options)
        settle_model(options)
        config, options.has_begun = config_of(options), True
        from qwen_mindspore.server.benchmark import benchmark, table

        report = benchmark(*serve.build_service(options, config), args.concurrency, args.prompt_tokens, args.new_tokens,
                           args.rounds)
        give_report(report, args, answers, table, None)

    return serve.leave(run_command(NAME, work, options.verbose), options)
