"""The benchmark: what it counts, what it writes, its peer in torch, and one run of it all on the golden model."""
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from helpers import ROOT, TINY
from helpers.checkpoints import random_tensors, write_hf_folder
from qwen_mindspore.bench import report as benchmark_report
from qwen_mindspore.bench import run as benchmark
from qwen_mindspore.bench.contestants import Ours, qwen2_weights
from qwen_mindspore.checkpoint import gguf as qwen_gguf
from qwen_mindspore.checkpoint.names import hf_shapes
from qwen_mindspore.checkpoint.packing import EMBEDDING, HEAD, LAYERS
from qwen_mindspore.cli.benchmark import main, parse_args
from qwen_mindspore.model.torch_qwen import TorchQwen

RATES = {"bandwidth": 100.0, "matmul": 1000.0}
SIZES = {"weight_bytes": 900, "step_bytes": 800, "cache_bytes": 64, "cache_bytes_per_token": 4, "step_parameters": 200,
         "head_parameters": 50, "attention_width": 3}
SETTINGS = {"prompts": [10], "batches": [2], "context": 32, "new_tokens": 4, "repeat": 3}
MODEL = {"name": "tiny", "hf": None, "checkpoint": "tiny.ckpt", "model_config": None}


def golden(name):
    return json.loads((TINY / name).read_text())


def figures(decode, tokens=(1, 2, 3)):
    """What a contestant prints."""
    return {
        "seconds_to": {"import": 1.0, "load": 2.0, "first_token": 3.0, "second_token": 4.0},
        "memory_bytes": {"import": 10, "loaded": 20, "load_peak": 30, "peak": 40},
        "prefill": {"10": 5.0}, "decode": {"2": decode}, "tokens": list(tokens), "sizes": SIZES, "versions": {},
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's, with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qwen-mindspore"


# The floor

def test_a_step_is_bound_by_what_it_reads_or_by_what_it_multiplies():
    assert benchmark_report.step_floor(RATES, (200, 1000)) == 2
    assert benchmark_report.step_floor(RATES, (200, 5000)) == 5


def test_decoding_reads_the_weights_once_and_the_cache_of_every_sequence():
    bytes_read, operations = benchmark_report.decode_work(SIZES, batch=2, context=10)
    assert bytes_read == 800 + 2 * 10 * 4
    assert operations == 2 * (2 * 200 + 4 * 3 * 10)


def test_a_prompt_needs_the_head_once():
    bytes_read, operations = benchmark_report.prefill_work(SIZES, tokens=10)
    assert bytes_read == 800
    assert operations == 2 * (150 * 10 + 50) + 2 * 3 * 10 * 10


# The report

def report():
    rounds = {"first": [figures(20.0), figures(10.0), figures(16.0)], "second": [figures(8.0, (1, 2, 9))] * 3}
    return benchmark_report.make_report(MODEL, SETTINGS, RATES, rounds)


def test_a_speed_is_the_median_of_the_rounds_beside_its_floor():
    speed = report()["contestants"]["first"]["decode"][2]
    assert (speed["median"], speed["min"], speed["max"]) == (2 / 16, 2 / 20, 2 / 10)
    # 34 tokens are in the cache on average: 32 of the prompt, and one to three more.
    assert speed["share_of_floor"] == pytest.approx((800 + 2 * 34 * 4) / 100 / 16)


def test_tokens_are_compared_with_the_first_contestants():
    contestants = report()["contestants"]
    assert [contestants[name]["same_tokens"] for name in ("first", "second")] == [3, 2]


def test_what_failed_stays_empty():
    settings = {**SETTINGS, "prompts": [10, 2048]}
    made = benchmark_report.make_report(MODEL, settings, RATES, {"first": [figures(20.0)]})
    assert made["contestants"]["first"]["prefill"][2048] is None
    assert any(line.split() == ["prefill,", "2048", "tokens", "failed"]
               for line in benchmark_report.table(made).splitlines())


def test_the_table_has_a_column_for_each_contestant():
    lines = benchmark_report.table(report()).splitlines()
    assert any(line.split() == ["first", "second"] for line in lines)
    assert any(line.split() == ["decode,", "2", "at", "once", "0.1", "67%", "0.2", "134%"] for line in lines)


def test_a_plot_is_drawn(tmp_path):
    path = tmp_path / "plot.png"
    benchmark_report.plot(report(), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_says_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        parse_args(["--plot", str(tmp_path / "plot.png")])
    assert "--plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


# A contestant

@pytest.mark.process
def test_the_figures_before_a_failure_are_kept(tmp_path, monkeypatch, capsys):
    package = tmp_path / "failing"
    (package / "bench").mkdir(parents=True)
    (package / "bench/contestants.py").write_text("print('{\"decode\": {\"1\": 2}}\\n"
                                                  "{\"decode\": {\"4\": 3}}', flush=True)\n"
                                                  "raise ValueError('no more')\n")
    monkeypatch.setattr(benchmark, "PACKAGE", package)
    monkeypatch.setattr(benchmark, "CONTESTANTS", "failing.bench.contestants")
    found = benchmark.run_contestant("it", sys.executable, {}, {})
    assert found == {"decode": {"1": 2, "4": 3}, "prefill": {}, "tokens": []}
    assert "it failed" in capsys.readouterr().err


@pytest.mark.process
def test_a_failure_before_all_figures_ends_the_run(tmp_path, monkeypatch):
    package = tmp_path / "failing"
    (package / "bench").mkdir(parents=True)
    (package / "bench/contestants.py").write_text("raise ValueError('no model')")
    monkeypatch.setattr(benchmark, "PACKAGE", package)
    monkeypatch.setattr(benchmark, "CONTESTANTS", "failing.bench.contestants")
    with pytest.raises(RuntimeError, match="it failed:(.|\n)*no model"):
        benchmark.run_contestant("it", sys.executable, {}, {})


def test_a_failure_in_a_later_round_leaves_the_others(monkeypatch, capsys):
    outcomes = iter([figures(1.0), RuntimeError("it failed"), figures(3.0)])

    def run_contestant(*_):
        outcome = next(outcomes)
        if isinstance(outcome, RuntimeError):
            raise outcome
        return outcome

    monkeypatch.setattr(benchmark, "run_contestant", run_contestant)
    monkeypatch.setattr(benchmark, "measure_machine", lambda: RATES)
    rates, found = benchmark.measure({"it": (sys.executable, {}, {"prompts": [10, 2048]})}, 3)
    assert (rates, [round_["decode"]["2"] for round_ in found["it"]]) == (RATES, [1.0, 3.0])
    assert "it failed" in capsys.readouterr().err


# Options

@pytest.mark.parametrize("options, message", [
    ("--vs jax", "expected torch, transformers, llama-cpp"),
    ("--vs torch:Q8_0", "expected torch, transformers, llama-cpp"),
    ("--vs llama-cpp:Q9", "found llama-cpp:Q9"),
    ("--prompts 32,0", "expected a positive number"),
    ("--new_tokens 1", "at least 2"),
    ("--random 3B", "1.8B"),
    ("--random 1.8B --hf x", "--random takes no --hf"),
    ("--random 1.8B --vs llama-cpp", "can't go with --random"),
    ("--layers 2", "goes with --random"),
    ("--config x.yaml", "needs --load_checkpoint"),
    ("--load_checkpoint x", "needs --config"),
    ("--config x.yaml --load_checkpoint x --vs torch", "give --hf"),
    ("--json nowhere/x.json", "there is no folder"),
])
def test_options_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(options.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_older_spelling_is_understood():
    assert parse_args(["--quantised", "a", "--quantized", "b"]).quantized == [Path("a"), Path("b")]


def test_a_kernel_set_that_can_not_run_here(cache, capfd):
    assert "--kernels none: no set that can run here" in fails(capfd, "--random", "1.8B", "--kernels", "none")


def test_every_released_size_has_a_shape():
    assert set(benchmark.shipped_configs()) == {"1.8B", "7B", "14B", "72B"}
    model = benchmark.find_model(parse_args(["--random", "1.8B", "--layers", "2"]))
    assert (model["model_config"]["num_hidden_layers"], model["model_config"]["hidden_size"]) == (2, 2048)


def fails(capfd, *options):
    """The message with which the command ends."""
    assert main(options) == 1
    return capfd.readouterr().err


def test_without_the_demo_model_it_says_how_to_get_it(cache, capfd):
    assert "scripts/demo.sh" in fails(capfd)


@pytest.mark.process
def test_without_a_peer_it_says_how_to_get_it_and_has_written_nothing(cache, monkeypatch, capfd):
    monkeypatch.setitem(benchmark.PEERS, "llama-cpp", (("no_such_module",), "pip install it"))
    message = fails(capfd, "--hf", str(TINY), "--vs", "llama-cpp")
    assert message.startswith("benchmark: --vs llama-cpp: ") and "pip install it" in message
    assert not cache.exists()


# GGUF

def test_gguf_has_every_tensor_under_its_name_and_the_settings(tmp_path):
    reader = gguf.GGUFReader(qwen_gguf.write_gguf(TINY, tmp_path / "tiny.gguf"))
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = load_file(TINY / "model.safetensors")
    assert len(written) == len(expected)
    for name, hf_name in (("token_embd.weight", "wte.weight"), ("blk.2.attn_qkv.bias", "h.2.attn.c_attn.bias"),
                          ("blk.0.ffn_gate.weight", "h.0.mlp.w2.weight"), ("blk.0.ffn_up.weight", "h.0.mlp.w1.weight"),
                          ("blk.1.ffn_down.weight", "h.1.mlp.c_proj.weight"), ("output_norm.weight", "ln_f.weight")):
        np.testing.assert_array_equal(written[name], expected[f"transformer.{hf_name}"])
    np.testing.assert_array_equal(written["output.weight"], expected["lm_head.weight"])
    settings = {name: reader.get_field(f"qwen.{name}").contents() for name in (
        "block_count", "feed_forward_length", "attention.head_count", "rope.freq_base", "vocab_size")}
    assert settings == {"block_count": 3, "feed_forward_length": 176, "attention.head_count": 4,
                        "rope.freq_base": 10000, "vocab_size": 512}
    assert reader.get_field("general.architecture").contents() == "qwen"


def test_gguf_quantized(tmp_path):
    reader = gguf.GGUFReader(qwen_gguf.write_gguf(TINY, tmp_path / "tiny.gguf", "Q8_0"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {name: tensors[name].tensor_type.name for name in (
        "output.weight", "output_norm.weight", "blk.0.attn_qkv.bias", "blk.0.ffn_down.weight")}
    # Rows of 88 are not whole blocks of 32.
    assert kinds == {"output.weight": "Q8_0", "output_norm.weight": "F32", "blk.0.attn_qkv.bias": "F32",
                     "blk.0.ffn_down.weight": "F32"}
    head = load_file(TINY / "model.safetensors")["lm_head.weight"]
    found = gguf.dequantize(tensors["output.weight"].data, tensors["output.weight"].tensor_type)
    # Half a step of 8 bits, and the rounding of the step to float16.
    np.testing.assert_allclose(found, head, atol=np.abs(head).max() / 127 * 0.51)


def test_gguf_bytes_leave_out_the_embedding(tmp_path):
    shapes = hf_shapes(golden("config.json"))
    total = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    path = qwen_gguf.write_gguf(TINY, tmp_path / "tiny.gguf")
    assert qwen_gguf.gguf_bytes(path) == (total, total - 4 * 512 * 64)


def test_a_gguf_that_llama_cpp_can_not_hold_is_not_begun(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    with pytest.raises(ValueError, match="num_attention_heads \\* kv_channels = hidden_size"):
        qwen_gguf.write_gguf(folder, tmp_path / "out" / "tiny.gguf")
    assert not (tmp_path / "out").exists()


# torch

def test_torch_peer_computes_the_golden_logits():
    expected = np.load(TINY / "forward.npz")
    logits = TorchQwen.from_folder(TINY).logits(torch.tensor(expected["input_ids"], dtype=torch.int64), {})
    # The reference is torch in float32 as well: ten times the rounding seen.
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-4)


def test_torch_peer_continues_as_the_reference():
    expected, model = golden("greedy.json"), TorchQwen.from_folder(TINY)
    for prompt, continuation in zip(expected["prompts"], expected["greedy"]):
        assert [ids[0] for ids in model.greedy([prompt], 32)] == continuation


def test_transformers_peer_has_every_weight_under_its_name_there():
    weights = TorchQwen.from_folder(TINY).weights
    renamed = qwen2_weights(golden("config.json"), weights)
    assert len(renamed) == 3 + 3 * 12
    attention = weights["transformer.h.1.attn.c_attn.weight"], weights["transformer.h.1.attn.c_attn.bias"]
    for kind, whole in zip(("weight", "bias"), attention):
        for part, expected in zip("qkv", whole.chunk(3)):
            assert torch.equal(renamed[f"model.layers.1.self_attn.{part}_proj.{kind}"], expected)
    for name, hf_name in (("embed_tokens", "wte"), ("layers.2.mlp.gate_proj", "h.2.mlp.w2"), ("norm", "ln_f"),
                          ("layers.2.mlp.up_proj", "h.2.mlp.w1"), ("layers.0.mlp.down_proj", "h.0.mlp.c_proj"),
                          ("layers.0.post_attention_layernorm", "h.0.ln_2")):
        assert torch.equal(renamed[f"model.{name}.weight"], weights[f"transformer.{hf_name}.weight"])
    tied = qwen2_weights({**golden("config.json"), "tie_word_embeddings": True}, weights)
    assert torch.equal(tied["lm_head.weight"], weights["transformer.wte.weight"])


# What a step reads and multiplies

def sizes_of(**settings):
    """What the contestant says of the golden model with these settings, weights aside."""
    from qwen_mindspore.generate.loop import QwenForCausalLM
    from qwen_mindspore.model.config import QwenConfig

    contestant = Ours()
    contestant.config = QwenConfig.from_hf_config(TINY, use_past=True, **settings)
    contestant.model = QwenForCausalLM(contestant.config)
    return contestant.sizes()


def test_a_quantized_model_multiplies_by_as_many_parameters_as_any():
    shapes = hf_shapes(golden("config.json"))
    whole = sizes_of()
    assert whole["step_parameters"] == sum(int(np.prod(shape)) for shape in shapes.values()) - 512 * 64
    assert whole["step_bytes"] == 4 * whole["step_parameters"]
    assert (whole["head_parameters"], whole["attention_width"]) == (512 * 64, 3 * 64)
    for bits, quantized in ((4, [LAYERS]), (8, [LAYERS]), (4, [LAYERS, HEAD, EMBEDDING])):
        packed = sizes_of(quantization={"bits": bits, "group_size": 32, "quantized": quantized})
        for name in ("step_parameters", "head_parameters", "attention_width", "cache_bytes_per_token", "cache_bytes"):
            assert packed[name] == whole[name], name
        assert packed["step_bytes"] < whole["step_bytes"] / 2


def test_an_8_bit_cache_counts_its_scales():
    whole, quantized = sizes_of(), sizes_of(use_cache_quantization=True)
    assert whole["cache_bytes_per_token"] == 2 * 3 * 64 * 4
    # A byte for each number, and a scale and a zero in float32 for each head.
    assert quantized["cache_bytes_per_token"] == 2 * 3 * (64 + 2 * 4 * 4)


def test_a_tied_embedding_is_read_as_the_head():
    tied, whole = sizes_of(tie_word_embeddings=True), sizes_of()
    assert all(tied[name] == whole[name] for name in ("step_parameters", "head_parameters", "step_bytes"))


# All of it

@pytest.mark.process
def test_a_run_on_the_golden_model(cache, tmp_path):
    options = ["--hf", str(TINY), "--kernels", "portable", "--vs", "torch", "--prompts", "4,20", "--batches", "1,2",
               "--new_tokens", "4", "--repeat", "1", "--json", str(tmp_path / "report.json")]
    result = subprocess.run([sys.executable, str(ROOT / "scripts/benchmark.py"), *options], cwd=tmp_path,
                            capture_output=True, text=True, check=False, env={**os.environ, "QWEN_KERNELS": "none"})
    assert result.returncode == 0, result.stderr
    assert "round 1 of 1: torch F32" in result.stderr
    assert result.stdout.splitlines()[4].split() == ["portable", "torch", "F32"]
    found = json.loads((tmp_path / "report.json").read_text())
    assert {"bandwidth", "matmul", "cpu", "threads", "memory_bytes"} <= found["machine"].keys()
    contestants = found["contestants"]
    assert list(contestants) == ["portable", "torch F32"]
    for figures_ in contestants.values():
        assert (list(figures_["prefill"]), list(figures_["decode"])) == (["4", "20"], ["1", "2"])
        assert {"median", "min", "max", "share_of_floor"} == figures_["decode"]["2"].keys()
        assert list(figures_["seconds_to"]) == ["import", "load", "first_token", "second_token"]
        assert figures_["memory_bytes"]["peak"]["median"] >= figures_["memory_bytes"]["load_peak"]["median"]
        assert figures_["same_tokens"] == 4
    ours, theirs = contestants.values()
    for size in ("weight_bytes", "step_bytes", "cache_bytes_per_token"):
        assert ours[size] == theirs[size]
    # Two sequences of 32 + 4 tokens, in blocks of 16; the head size is 16, of 4 heads in 3 layers.
    assert ours["cache_bytes"] == 2 * 3 * 16 * ours["cache_bytes_per_token"]
    assert ours["cache_bytes_per_token"] == 2 * 3 * 4 * 16 * 4
    assert {path.name for path in tmp_path.iterdir()} == {"qwen-mindspore", "report.json"}
