"""
A fuzzer over everything that reads a file of somebody else's.

    bash scripts/fuzz.sh TARGET --seconds 60        a target of the table TARGETS, or "all", a process for each CPU
    bash scripts/fuzz.sh TARGET --replay FILE ...   inputs that were found

What a target must do with any bytes: give a value, or raise ValueError or OSError with a message of one line; never
another exception, never hang (10 s an input), never use more than 3 GB. What breaks that is written to
tests/data/fuzz/TARGET/, beside the seeds, and `test_fuzz_readers.py` replays it from then on.

Mutation and coverage are libFuzzer's, by way of atheris (requirements-test.txt), which sees the project's own code.
"""
import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwen_mindspore.common.cpus import usable_cpus

SEEDS = Path(__file__).resolve().parents[1] / "data" / "fuzz"
TIMEOUT, MEMORY = 10, 3000  # s, MB
EXPECTED = (ValueError, OSError)


# The targets: each writes the bytes where they belong, in a folder of its own, and reads them as the commands do.

def safetensors(folder, data):
    """A file of weights: its header, its tensors, and whether they are a model's."""
    _read_weights(folder / "model.safetensors", data)


def ckpt(folder, data):
    """The same in MindSpore's format."""
    _read_weights(folder / "qwen.ckpt", data)


def _read_weights(path, data):
    from qwen_mindspore.checkpoint.files import Checkpoint, check_tensors, checkpoint_files
    from qwen_mindspore.checkpoint.names import hf_to_ms

    path.write_bytes(data)
    checkpoint = Checkpoint(checkpoint_files(path))
    for name, stored in checkpoint.tensors.items():
        if stored.shape and stored.dtype in ("float32", "float16", "bfloat16", "int32", "uint8"):
            rows = checkpoint.read(name, 0, min(stored.shape[0], 2))
            assert rows.shape[1:] == stored.shape[1:]
    check_tensors(checkpoint, hf_to_ms(MODEL))


def index(folder, data):
    """The index of a checkpoint in several files."""
    from qwen_mindspore.checkpoint.files import checkpoint_files

    for name in ("a.safetensors", "b.safetensors", "model-00001-of-00002.safetensors"):
        (folder / name).touch()
    (folder / "model.safetensors.index.json").write_bytes(data)
    checkpoint_files(folder)


def config_json(folder, data):
    """A config.json, up to the names and shapes of its tensors, and how it is quantized."""
    from qwen_mindspore.checkpoint.files import read_config
    from qwen_mindspore.checkpoint.names import hf_to_ms, ms_to_hf
    from qwen_mindspore.checkpoint.packing import find_quantization

    (folder / "config.json").write_bytes(data)
    find_quantization(folder)
    config = read_config(folder / "config.json")
    if config.get("num_hidden_layers", 0) in range(20):
        hf_to_ms(config), ms_to_hf(config)


def quantize_config(folder, data):
    """AutoGPTQ's quantize_config.json, beside a config.json that has the same as `quantization_config`, or nothing."""
    from qwen_mindspore.checkpoint.gptq import read_settings
    from qwen_mindspore.common.files import read_json

    path = folder / "quantize_config.json"
    path.write_bytes(data)
    content = read_json(path)
    read_settings(folder, MODEL)
    read_settings(folder, {**MODEL, "quantization_config": {"bits": 4, "group_size": 128, "desc_act": False}})
    path.unlink()
    read_settings(folder, {**MODEL, "quantization_config": content.get("quantization_config", content)})


def vocabulary(folder, data):
    """A vocabulary in tiktoken's format."""
    from qwen_mindspore.text.tokenizer import load_vocab

    (folder / "qwen.tiktoken").write_bytes(data)
    load_vocab(folder / "qwen.tiktoken")


def records(folder, data):
    """Rows of a batch: JSONL; by the first byte also a JSON array, CSV, TSV or text."""
    from qwen_mindspore.batch.records import FORMATS, count_records, read_records

    formats = {ord("A"): "json", ord("C"): "csv", ord("T"): "tsv", ord("X"): "text"}
    name = formats.get(data[0] if data else 0, "jsonl")
    path = folder / "rows"
    path.write_bytes(data if name == "jsonl" else data[1:])
    assert name in FORMATS
    rows = list(read_records(path, name, "prompt"))
    assert len(rows) == count_records(path, name, "prompt")
    for row in rows:
        assert (row.fields is None) != (row.error is None)
        assert row.error is None or "\n" not in row.error


def yaml(folder, data):
    """A YAML of a model, with a base, up to the model's configuration."""
    from qwen_mindspore.common.configs import read_config
    from qwen_mindspore.model.config import QwenConfig

    (folder / "base.yaml").write_text("model:\n  model_config:\n    hidden_size: 64\n    num_layers: 2\n")
    (folder / "model.yaml").write_bytes(data)
    content = read_config(folder / "model.yaml")
    model = content.get("model")
    settings = model.get("model_config") if isinstance(model, dict) else None
    if isinstance(settings, dict) and all(isinstance(key, str) for key in settings):
        QwenConfig(**settings)


def hf_config(folder, data):
    """A config.json with a generation_config.json, up to the model's configuration; a line of --- parts the two."""
    from qwen_mindspore.model.config import QwenConfig

    config, _, generation = data.partition(b"\n---\n")
    (folder / "config.json").write_bytes(config)
    if generation:
        (folder / "generation_config.json").write_bytes(generation)
    QwenConfig.from_hf_config(folder)


TARGETS = {function.__name__: function for function in (
    safetensors, ckpt, index, config_json, quantize_config, vocabulary, records, yaml, hf_config)}

MODEL = {"model_type": "qwen", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
         "kv_channels": 2, "intermediate_size": 8}

# Words that mutation alone would hardly find.
WORDS = {
    "safetensors": ['{"', '":{', '"dtype":"F32"', '"dtype":"I64"', '"shape":[', '"data_offsets":[0,', "__metadata__"],
    "ckpt": ["\\x0a", "\\x12", "\\x1a", "Float32", "BFloat16", "crc_num", "lm_head.weight"],
    "index": ['"weight_map":', "a.safetensors", "null", "[]", "../", '"metadata":'],
    "config_json": ['"model_type":"qwen"', '"n_embd":', '"quantization":{"bits":4,"group_size":8}', "NaN", "1e400"],
    "quantize_config": ['"bits":', '"group_size":', '"desc_act":', '"format":"gptq_v2"', '"checkpoint_format":', "null",
                        '"quantization_config":', "4.0", "-1", '"true"'],
    "vocabulary": ["IQ== ", "AA== 0\\x0a", "\\x0d\\x0a"],
    "records": ['{"prompt":', "NaN", "1e400", "\\xef\\xbb\\xbf", "\\xff\\xfe", "\\xe2\\x80\\xa8", '"""', "prompt,id"],
    "yaml": ["model:\\x0a  model_config:\\x0a    ", "base_config: base.yaml", "&a ", "*a", "!!int", "!!timestamp ",
             "<<: ", "quantization: {bits: 4, group_size: 8}", "num_layers: ", "theta: ", "eos_token_id: ",
             "2001-99-99"],
    "hf_config": ['"model_type":"qwen"', "\\x0a---\\x0a", '"eos_token_id":', '"n_embd":64', "[1,2]", "null", "1e400"],
}


def check(target, data):
    """Run a target on an input. Raises whatever breaks the contract."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            TARGETS[target](Path(folder), data)
        except EXPECTED as error:
            message = str(error)
            if not message.isprintable():
                raise AssertionError(f"not one printable line: {message!r}") from error


def seeds_of(target):
    """The files that are replayed: seeds, and what was found."""
    return sorted((SEEDS / target).glob("*"))


def main(argv=None):
    """The command; returns the exit code: 0, or 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="how long, each (default: %(default)s)")
    parser.add_argument("--replay", nargs="+", type=Path, default=[], help="run these inputs and nothing else")
    args = parser.parse_args(argv)
    if args.target == "all":  # libFuzzer ends its process
        command = [sys.executable, __file__, "--seconds", str(args.seconds)]
        with ThreadPoolExecutor(usable_cpus()) as processes:
            codes = list(processes.map(lambda name: subprocess.run([*command, name], check=False).returncode, TARGETS))
        return int(any(codes))
    for path in args.replay:
        check(args.target, path.read_bytes())
    if not args.replay:
        _fuzz(args.target, args.seconds)
    return 0


def _fuzz(target, seconds):
    import atheris

    os.environ.setdefault("LOG_MF_PATH", tempfile.mkdtemp(prefix="fuzz-log-"))
    os.environ.setdefault("GLOG_v", "3")
    with atheris.instrument_imports(include=["qwen_mindspore"]), contextlib.redirect_stdout(sys.stderr):
        for path in seeds_of(target):  # imports, too, what the target needs
            check(target, path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as corpus:
        words = Path(corpus, "words.dict")
        words.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in WORDS[target]))
        grown = Path(corpus, "corpus")
        grown.mkdir()
        found = SEEDS / target
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}",
                       f"-dict={words}", "-max_len=4096", f"-artifact_prefix={found}/found-", "-verbosity=0",
                       "-print_final_stats=1", str(grown), str(found)], lambda data: check(target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
