"""
Measure this project's kernel sets, and beside them torch and llama.cpp, on the same weights in one run:

    python scripts/benchmark.py --vs torch --vs llama-cpp --peer_python OTHER_VENV/bin/python --json FILE

Contestants take turns, each in a process of its own, and each figure is the median over the rounds: other work on a
machine comes and goes. Prefill is one prompt, up to its first token; decode tokens/s are those of all sequences of a
batch together, after their first. A percentage is the share of the floor: of the speed at which the step would only
read its weights and cache at this machine's bandwidth, or only multiply at its rate, whichever is slower. Peers use
all threads of the machine.
"""
import argparse
import sys
from pathlib import Path

from qwen_mindspore.bench.report import plot, table
from qwen_mindspore.bench.run import CONTEXT, PEERS, benchmark, shipped_configs
from qwen_mindspore.checkpoint.gguf import TYPES
from qwen_mindspore.cli.command import give_report, run_command
from qwen_mindspore.cli.options import add_model_options, positive_int, positive_ints, settle_model
from qwen_mindspore.common.plots import output_problem


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model (default: the demo model, made by scripts/demo.sh)")
    model.add_argument("--hf", type=Path, metavar="DIR", help="a Hugging Face folder, which peers load as it is")
    model.add_argument("--config", type=Path, metavar="YAML", help="the config, instead of the folder's config.json")
    model.add_argument("--load_checkpoint", type=Path, metavar="C",
                       help="the MindSpore checkpoint (default: converted from --hf, once, into the cache)")
    add_model_options(model, model)
    model.add_argument("--random", metavar="SIZE", choices=shipped_configs(),
                       help=f"random weights of a released shape: {', '.join(shipped_configs())}")
    model.add_argument("--layers", type=positive_int, metavar="N", help="with --random: only N layers")
    parser.add_argument("--kernels", type=lambda text: text.split(","), metavar="NAME,...",
                        help="kernel sets (default: all that can run here)")
    parser.add_argument("--vs", type=_peer, action="append", default=[], metavar="PEER",
                        help=f"torch, transformers, llama-cpp or llama-cpp:TYPE, TYPE one of {', '.join(TYPES)}")
    parser.add_argument("--quantized", "--quantised", type=Path, action="append", default=[], metavar="C",
                        help="the same model as scripts/quantize.py wrote it, measured beside the others")
    parser.add_argument("--peer_python", default=sys.executable, metavar="PATH",
                        help="the Python that has the peers' packages, if it is another one")
    parser.add_argument("--prompts", type=positive_ints, default=[32, 512, 2048], metavar="N,...",
                        help="lengths of the prompts that prefill is measured with (default: 32,512,2048)")
    parser.add_argument("--batches", type=positive_ints, default=[1, 4, 16], metavar="N,...",
                        help="batch sizes that decoding is measured with (default: 1,4,16)")
    parser.add_argument("--new_tokens", type=positive_int, default=64, metavar="N",
                        help=f"tokens of each continuation of a {CONTEXT}-token prompt (default: %(default)s)")
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="R", help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with its minimum and maximum")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the speeds (needs matplotlib)")
    args = parser.parse_args(argv)
    problem = _contradiction(args)
    if problem:
        parser.error(problem)
    return args


def _contradiction(args):
    """What is wrong with the options together, or None."""
    peers = [name for name, _ in args.vs]
    if args.random and (args.hf or args.config or args.load_checkpoint or args.model):
        return "--random takes no --hf, --config, --load_checkpoint or --model"
    if args.model and (args.hf or args.load_checkpoint):
        return "--model takes no --hf or --load_checkpoint"
    if args.random and args.quantized:
        return "--quantized goes with a checkpoint, not with --random"
    if args.layers and not args.random:
        return "--layers goes with --random"
    if args.random and "llama-cpp" in peers:
        return "--vs llama-cpp loads a file: it can't go with --random"
    if args.config and not (args.load_checkpoint or args.hf or args.model):
        return "--config needs --load_checkpoint, or --hf to convert one from"
    if args.load_checkpoint and not (args.config or args.hf):
        return "--load_checkpoint needs --config, or --hf for its config.json"
    if args.config and peers and not (args.hf or args.model):
        return _needs_hf(peers[0])
    if args.new_tokens < 2:
        return "--new_tokens: expected at least 2, the first of which belongs to the prompt"
    return output_problem(args.json, args.plot)


def _needs_hf(peer):
    return f"--vs {peer} loads a Hugging Face folder: give --hf (convert/convert_reversed.py makes one)"


def settle(args):
    """
    Put what --model names where the other options have theirs.

    Raises:
        ValueError, OSError: See `cli.options.settle_model`; or a peer is to load a model that is not Hugging Face's.
    """
    from qwen_mindspore.checkpoint.by_name import is_hugging_face

    folder = args.model and Path(args.model).expanduser()
    if folder and folder.is_dir() and is_hugging_face(folder) and not (args.hub or args.revision):
        args.hf = folder
        return
    args.is_config_given = args.config is not None
    settle_model(args)
    if args.model:
        args.config, args.load_checkpoint = Path(args.config), Path(args.load_checkpoint)
        if args.vs:
            raise ValueError(_needs_hf(args.vs[0][0]))


def _peer(text):
    """(peer, type of its weights)."""
    name, _, dtype = text.partition(":")
    if name not in PEERS or (dtype and (name != "llama-cpp" or dtype not in TYPES)):
        raise argparse.ArgumentTypeError(f"expected torch, transformers, llama-cpp or llama-cpp:TYPE with TYPE one of "
                                         f"{', '.join(TYPES)}, found {text}")
    return name, dtype or "F32"


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)

    def work(answers):
        settle(args)
        give_report(benchmark(args), args, answers, table, plot)

    return run_command("benchmark", work)
