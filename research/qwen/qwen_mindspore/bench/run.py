"""One run of the benchmark: the contestants, their turns, each in a process of its own, and the machine's rates."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwen_mindspore.bench.contestants import NOT_FINITE
from qwen_mindspore.bench.report import make_report
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.demo_model import MODEL_NAME
from qwen_mindspore.checkpoint.gguf import gguf_bytes, write_gguf
from qwen_mindspore.checkpoint.model_cache import folder_digest
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.common.configs import read_config
from qwen_mindspore.common.files import cache_folder, configs_folder
from qwen_mindspore.common.keys import read_config_json
from qwen_mindspore.common.progress import say

__all__ = ["CONTEXT", "PEERS", "benchmark", "shipped_configs"]

NAME = "benchmark"
PACKAGE = Path(__file__).resolve().parents[1]
CONTESTANTS = "qwen_mindspore.bench.contestants"
DEMO_CHECKPOINT = "smollm2-135m-qwen-ms"
INDEX = "model.safetensors.index.json"
CONTEXT = 32  # tokens of each prompt whose continuation is measured

# The modules that a peer needs, and how to get them.
PEERS = {
    "torch": (("torch", "safetensors", "numpy"), "pip install torch safetensors numpy"),
    "transformers": (("torch", "transformers", "safetensors", "numpy"), "pip install torch transformers safetensors"),
    "llama-cpp": (("llama_cpp", "numpy"), "pip install llama-cpp-python"),
}


def shipped_configs():
    """{"1.8B": its YAML, ...}."""
    return {path.stem.removeprefix("predict_qwen_").replace("_", ".").upper(): path
            for path in sorted(configs_folder().glob("predict_qwen_*[0-9]b.yaml"))}


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
        models = cache_folder("models")
        hf, checkpoint = models / MODEL_NAME, models / DEMO_CHECKPOINT
        if not (hf.is_dir() and (checkpoint / INDEX).is_file()):
            raise FileNotFoundError(f"no demo model in {models}: make it with scripts/demo.sh, or give --hf")
    for path in filter(None, (hf, checkpoint)):
        repair(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    checkpoint = checkpoint or _converted(hf)
    return {"name": (hf or checkpoint).resolve().name, "hf": hf and str(hf.resolve()),
            "checkpoint": str(checkpoint.resolve()), "model_config": _read_yaml(args.config) if args.config else None}


def _read_yaml(path):
    try:
        config = read_config(path)["model"]["model_config"]
        values = {key: value for key, value in config.items() if key != "type"}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: expected a YAML with model.model_config, as in {configs_folder()}") from None
    return read_config_json(values, path)


def _converted(hf):
    """The MindSpore checkpoint of a Hugging Face folder."""
    checkpoint = _cached(hf, "-ms")
    if not (checkpoint / INDEX).is_file():
        say(NAME, f"converting {hf} to {checkpoint}")
        convert_weight(hf, checkpoint)
    return checkpoint


def _gguf(hf, dtype):
    """The GGUF file of a Hugging Face folder."""
    path = _cached(hf, f"-{dtype}.gguf")
    if not path.is_file():
        say(NAME, f"writing {path}")
        write_gguf(hf, path, dtype)
    return path


def _cached(folder, suffix):
    """A place in the cache for what is made of a folder, which a change of the folder's files makes another one."""
    return cache_folder("models") / f"{folder.resolve().name}-{folder_digest(folder)}{suffix}"


def plan(args):
    """
    What is to be measured; all that can be wrong with it comes to light here.

    Returns:
        (model, see `find_model`; {contestant: (Python, environment variables, job)} in the order of their turns). A
        job is what `bench.contestants` takes.

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
    for checkpoint in args.quantized:
        for name in kernels:
            own = {**job, "kind": "ours", "checkpoint": str(checkpoint.resolve())}
            contestants[f"{name} {checkpoint.name}"] = sys.executable, {"QWEN_KERNELS": name}, own
    for name, dtype in args.vs:
        peer = {**job, "kind": name}
        if name == "llama-cpp":
            path = _gguf(Path(model["hf"]), dtype)
            total, step = gguf_bytes(path)
            peer |= {"gguf": str(path), "gguf_bytes": total, "gguf_step_bytes": step}
        contestants[f"{name} {dtype}"] = pythons[name], {}, peer
    return model, contestants


def run_contestant(name, python, environment, job):
    """
    The figures that `bench.contestants` prints for a job, as one dict; all there were before it failed, if so.

    Raises:
        RuntimeError: It failed before the first figure.
        ArithmeticError: Its logits are not finite: no figure of it means anything.
    """
    # MindSpore and MindFormers leave logs and more in the working directory.
    with tempfile.TemporaryDirectory() as scratch:
        # A peer's Python may have nothing of this project: it finds the package in its working directory.
        Path(scratch, PACKAGE.name).symlink_to(PACKAGE)
        command = [python, "-m", CONTESTANTS, json.dumps({**job, "started": time.time()})]
        result = subprocess.run(command, cwd=scratch, env={**os.environ, "LOG_MF_PATH": scratch, **environment},
                                capture_output=True, text=True, check=False)
    if result.returncode == NOT_FINITE:
        raise ArithmeticError(f"{name}: {result.stderr.strip().splitlines()[-1]}")
    if result.returncode:
        log = "\n".join(result.stderr.strip().splitlines()[-12:])
        problem = "ran out of memory" if result.returncode == -signal.SIGKILL else f"failed:\n{log}"
        if not result.stdout:
            raise RuntimeError(f"{name} {problem}")
        say(NAME, f"{name} {problem}")
    figures = {"decode": {}, "prefill": {}, "tokens": []}
    for line in result.stdout.splitlines():
        for key, value in json.loads(line).items():
            figures[key] = {**figures.get(key, {}), **value} if isinstance(value, dict) else value
    return figures


def measure_machine():
    """What `bench.machine` prints."""
    command = [sys.executable, "-m", "qwen_mindspore.bench.machine"]
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
                say(NAME, error)
                continue
            job["given_up"] = [tokens for tokens in job["prompts"] if str(tokens) not in found["prefill"]]
            figures[name].append(found)
            say(NAME, f"round {number} of {rounds}: {name}, {time.time() - start:.0f} s")
    return rates, figures


def benchmark(args):
    """Run everything; returns the report, see `bench.report.make_report`."""
    model, contestants = plan(args)
    rates, figures = measure(contestants, args.repeat)
    settings = {"prompts": args.prompts, "batches": args.batches, "context": CONTEXT, "new_tokens": args.new_tokens,
                "repeat": args.repeat}
    return make_report(model, settings, rates, figures)
