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
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwen_mindspore.bench import report as benchmark_report
from qwen_mindspore.checkpoint import gguf as qwen_gguf
from qwen_mindspore.checkpoint.demo_model import MODEL_NAME, default_cache

SCRIPTS = Path(__file__).resolve().parent
CONFIGS = SCRIPTS.parent / "configs"
DEMO_CHECKPOINT = "smollm2-135m-qwen-ms"
CONTEXT = 32  # tokens of each prompt whose continuation is measured

# The modules that a peer needs, and how to get them.
PEERS = {
    "torch": (("torch", "safetensors", "numpy"), "pip install torch safetensors numpy"),
    "transformers": (("torch", "transformers", "safetensors", "numpy"), "pip install torch transformers safetensors"),
    "llama-cpp": (("llama_cpp", "numpy"), "pip install llama-cpp-python"),
}


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model (default: the demo model, made by scripts/demo.sh)")
    model.add_argument("--hf", type=Path, metavar="DIR", help="a Hugging Face folder, which peers load as it is")
    model.add_argument("--config", type=Path, metavar="YAML", help="the config, instead of the folder's config.json")
    model.add_argument("--load_checkpoint", type=Path, metavar="C",
                       help="the MindSpore checkpoint (default: converted from --hf, once, into the cache)")
    model.add_argument("--random", metavar="SIZE", choices=shipped_configs(),
                       help=f"random weights of a released shape: {', '.join(shipped_configs())}")
    model.add_argument("--layers", type=_positive, metavar="N", help="with --random: so many layers only")
    parser.add_argument("--kernels", type=lambda text: text.split(","), metavar="NAME,...",
                        help="kernel sets (default: all that can run here)")
    parser.add_argument("--vs", type=_peer, action="append", default=[], metavar="PEER",
                        help=f"torch, transformers, llama-cpp or llama-cpp:TYPE, TYPE one of {', '.join(qwen_gguf.TYPES)}")
    parser.add_argument("--quantised", type=Path, action="append", default=[], metavar="C",
                        help="the same model as scripts/quantize.py wrote it, measured beside the others")
    parser.add_argument("--peer_python", default=sys.executable, metavar="PATH",
                        help="the Python that has the peers' packages, if it is another one")
    parser.add_argument("--prompts", type=_positives, default=[32, 512, 2048], metavar="N,...",
                        help="lengths of the prompts that prefill is measured with (default: 32,512,2048)")
    parser.add_argument("--batches", type=_positives, default=[1, 4, 16], metavar="N,...",
                        help="batch sizes that decoding is measured with (default: 1,4,16)")
    parser.add_argument("--new_tokens", type=_positive, default=64, metavar="N",
                        help=f"tokens of each continuation of a {CONTEXT}-token prompt (default: %(default)s)")
    parser.add_argument("--repeat", type=_positive, default=3, metavar="R", help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with its least and greatest")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the speeds (needs matplotlib)")
    args = parser.parse_args(argv)
    problem = _contradiction(args)
    if problem:
        parser.error(problem)
    return args


def _contradiction(args):
    """What is wrong with the options together, or None."""
    peers = [name for name, _ in args.vs]
    if args.random and (args.hf or args.config or args.load_checkpoint):
        return "--random takes no --hf, --config or --load_checkpoint"
    if args.random and args.quantised:
        return "--quantised goes with a checkpoint, not with --random"
    if args.layers and not args.random:
        return "--layers goes with --random"
    if args.random and "llama-cpp" in peers:
        return "--vs llama-cpp loads a file: it can't go with --random"
    if args.config and not (args.load_checkpoint or args.hf):
        return "--config needs --load_checkpoint, or --hf to convert one from"
    if args.load_checkpoint and not (args.config or args.hf):
        return "--load_checkpoint needs --config, or --hf for its config.json"
    if args.config and peers and not args.hf:
        return f"--vs {peers[0]} loads a Hugging Face folder: give --hf (convert/convert_reversed.py makes one)"
    if args.new_tokens < 2:
        return "--new_tokens: expected at least 2, the first of which belongs to the prompt"
    return benchmark_report.output_problem(args.json, args.plot)


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return value


def _positives(text):
    return [_positive(part) for part in text.split(",")]


def _peer(text):
    """(peer, type of its weights)."""
    name, _, dtype = text.partition(":")
    if name not in PEERS or (dtype and (name != "llama-cpp" or dtype not in qwen_gguf.TYPES)):
        raise argparse.ArgumentTypeError(f"expected torch, transformers, llama-cpp or llama-cpp:TYPE with TYPE one of "
                                         f"{', '.join(qwen_gguf.TYPES)}, found {text}")
    return name, dtype or "F32"


def shipped_configs():
    """{"1.8B": its YAML, ...}."""
    return {path.stem.removeprefix("predict_qwen_").replace("_", ".").upper(): path
            for path in sorted(CONFIGS.glob("predict_qwen_*[0-9]b.yaml"))}


def find_peer(name, peer_python):
    """
    The Python that has a peer's packages: `--peer_python`, or else this one.

    Raises:
        OSError: Neither has.
    """
    modules, advice = PEERS[name]
    check = f"import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, {modules!r})))"
    for python in (peer_python, sys.executable):
        if subprocess.run([python, "-c", check], check=False).returncode == 0:
            return python
    raise OSError(f"--vs {name}: {peer_python} lacks one of {', '.join(modules)}: {advice}, there or in an "
                  "environment that --peer_python names")


def find_model(args):
    """
    Where config and weights are; a checkpoint that has to be converted is converted here.

    Returns:
        dict: name; hf, a folder or None; checkpoint or None; model_config, a dict or None for config.json's.

    Raises:
        OSError: The demo model, or a file that was named, is not there.
        ValueError: A file is not what it should be.
    """
    if args.random:
        config = _read_yaml(shipped_configs()[args.random])
        config["num_hidden_layers"] = args.layers or config["num_hidden_layers"]
        name = f"random {args.random} of {config['num_hidden_layers']} layers"
        return {"name": name, "hf": None, "checkpoint": None, "model_config": config}
    hf, checkpoint = args.hf, args.load_checkpoint
    if not (hf or checkpoint):
        models = default_cache() / "models"
        hf, checkpoint = models / MODEL_NAME, models / DEMO_CHECKPOINT
        if not (hf.is_dir() and checkpoint.is_dir()):
            raise FileNotFoundError(f"no demo model in {models}: make it with scripts/demo.sh, or give --hf")
    for path in filter(None, (hf, checkpoint)):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    checkpoint = checkpoint or _converted(hf)
    return {"name": (hf or checkpoint).resolve().name, "hf": hf and str(hf.resolve()),
            "checkpoint": str(checkpoint.resolve()), "model_config": _read_yaml(args.config) if args.config else None}


def _read_yaml(path):
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["model_config"]
    except (yaml.YAMLError, KeyError, TypeError):
        raise ValueError(f"{path}: expected a YAML with model.model_config, as in {CONFIGS}") from None
    return {key: value for key, value in config.items() if key != "type"}


def _converted(hf):
    """The MindSpore checkpoint of a Hugging Face folder."""
    checkpoint = _cached(hf, "-ms")
    if not (checkpoint / "model.safetensors.index.json").is_file():
        from qwen_mindspore.cli.convert import convert_weight
        say(f"converting {hf} to {checkpoint}")
        convert_weight(hf, checkpoint)
    return checkpoint


def _gguf(hf, dtype):
    """The GGUF file of a Hugging Face folder."""
    path = _cached(hf, f"-{dtype}.gguf")
    if not path.is_file():
        say(f"writing {path}")
        qwen_gguf.write_gguf(hf, path, dtype)
    return path


def _cached(folder, suffix):
    """A place in the cache for what is made of a folder, which a change of the folder's files makes another one."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    key = hashlib.sha256(repr((str(folder.resolve()), files)).encode()).hexdigest()[:8]
    return default_cache() / "models" / f"{folder.resolve().name}-{key}{suffix}"


def plan(args):
    """
    What is to be measured; all that can be wrong with it comes to light here.

    Returns:
        (model, see `find_model`; {contestant: (Python, environment variables, job)} in the order of their turns). A
        job is what benchmark_contestant.py takes.

    Raises:
        OSError: A peer or a file is not there.
        ValueError: A file is not what it should be, or a kernel set can't run here.
    """
    pythons = {name: find_peer(name, args.peer_python) for name, _ in args.vs}
    model = find_model(args)
    kernels = run_contestant("the list of kernel sets", sys.executable, {}, {"kernels": args.kernels})["kernels"]
    for name in args.kernels or []:
        if name not in kernels:
            raise ValueError(f"--kernels {name}: no set that can run here; without --kernels all that can are measured")
    job = {**model, "prompts": args.prompts, "batches": args.batches, "context": CONTEXT,
           "new_tokens": args.new_tokens, "given_up": []}
    contestants = {name: (sys.executable, {"QWEN_KERNELS": name}, {**job, "kind": "ours"})
                   for name in kernels}
    for checkpoint in args.quantised:
        for name in kernels:
            own = {**job, "kind": "ours", "checkpoint": str(checkpoint.resolve())}
            contestants[f"{name} {checkpoint.name}"] = sys.executable, {"QWEN_KERNELS": name}, own
    for name, dtype in args.vs:
        peer = {**job, "kind": name}
        if name == "llama-cpp":
            path = _gguf(Path(model["hf"]), dtype)
            total, step = qwen_gguf.gguf_bytes(path)
            peer |= {"gguf": str(path), "gguf_bytes": total, "gguf_step_bytes": step}
        contestants[f"{name} {dtype}"] = pythons[name], {}, peer
    return model, contestants


def run_contestant(name, python, environment, job):
    """
    The figures that benchmark_contestant.py prints for a job, as one dict; all there were before it failed, if so.

    Raises:
        RuntimeError: It failed before the first figure.
    """
    # MindSpore and MindFormers leave logs and more in the working directory.
    with tempfile.TemporaryDirectory() as scratch:
        command = [python, str(SCRIPTS / "benchmark_contestant.py"), json.dumps({**job, "started": time.time()})]
        result = subprocess.run(command, cwd=scratch, env={**os.environ, "LOG_MF_PATH": scratch, **environment},
                                capture_output=True, text=True, check=False)
    if result.returncode:
        log = "\n".join(result.stderr.strip().splitlines()[-12:])
        problem = "ran out of memory" if result.returncode == -signal.SIGKILL else f"failed:\n{log}"
        if not result.stdout:
            raise RuntimeError(f"{name} {problem}")
        say(f"{name} {problem}")
    figures = {"decode": {}, "prefill": {}, "tokens": []}
    for line in result.stdout.splitlines():
        for key, value in json.loads(line).items():
            figures[key] = {**figures.get(key, {}), **value} if isinstance(value, dict) else value
    return figures


def measure_machine():
    """What benchmark_machine.py prints."""
    command = [sys.executable, str(SCRIPTS / "benchmark_machine.py")]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(contestants, rounds):
    """
    Let every contestant run once a round. A prompt that it failed at in one round is not tried again; a round in
    which it has no figures at all is left out, save the first.

    Returns:
        (the machine's rates, each the best that was seen; {contestant: [figures of each round]}).

    Raises:
        RuntimeError: A contestant failed in the first round.
    """
    rates, figures = {"bandwidth": 0, "matmul": 0}, {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, (python, environment, job) in contestants.items():
            rates = {key: max(rates[key], rate) for key, rate in measure_machine().items()}
            start = time.time()
            try:
                found = run_contestant(name, python, environment, job)
            except RuntimeError as error:
                if not figures[name]:
                    raise
                say(error)
                continue
            job["given_up"] = [tokens for tokens in job["prompts"] if str(tokens) not in found["prefill"]]
            figures[name].append(found)
            say(f"round {number} of {rounds}: {name}, {time.time() - start:.0f} s")
    return rates, figures


def benchmark(args):
    """Run everything; returns the report, see `bench.report.make_report`."""
    model, contestants = plan(args)
    rates, figures = measure(contestants, args.repeat)
    settings = {"prompts": args.prompts, "batches": args.batches, "context": CONTEXT, "new_tokens": args.new_tokens,
                "repeat": args.repeat}
    return benchmark_report.make_report(model, settings, rates, figures)


def say(text):
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def main():
    args = parse_args()
    # SIGTERM shall end the contestant that runs, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = benchmark(args)
    except KeyboardInterrupt:
        sys.exit("benchmark: interrupted")
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"benchmark: {error}")
    print(benchmark_report.table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        benchmark_report.plot(report, args.plot)


if __name__ == "__main__":
    main()
