"""MindSpore to Hugging Face: the round trip is bit-exact, and what is no weight of the model stays behind."""
import json
import os
import subprocess
import sys

import mindspore as ms
import pytest
import torch
from safetensors import safe_open

from helpers import ROOT, TINY
from helpers.checkpoints import CONFIG, load_folder, random_tensors, same_bits, write_hf_folder
from qwen_mindspore.checkpoint import save as checkpoint_save
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight

SCRIPT = ROOT / "convert/convert_reversed.py"
MINDSPORE = ("ms/qwen.ckpt", "ms/qwen.safetensors", "ms")


@pytest.fixture
def hf(tmp_path):
    return write_hf_folder(tmp_path / "hf", random_tensors())


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert same_bits(tensor, right[name]), name


def add_to_ckpt(path, entries):
    """Save a .ckpt again with more entries, as a trainer does."""
    parameters = [{"name": name, "data": data} for name, data in ms.load_checkpoint(str(path)).items()]
    ms.save_checkpoint(parameters, str(path), append_dict=entries)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("middle", MINDSPORE)
def test_there_and_back_is_bit_exact(tmp_path, monkeypatch, middle, dtype):
    monkeypatch.setattr(checkpoint_save, "CHUNK_BYTES", 100)
    monkeypatch.setattr(checkpoint_save, "SHARD_BYTES", 2000)
    folder = write_hf_folder(tmp_path / "hf", random_tensors(dtype))

    convert_weight(folder, tmp_path / middle)
    written = convert_reversed(tmp_path / middle, tmp_path / "back")

    assert written == tmp_path / "back"
    assert_same(load_folder(written), random_tensors(dtype))
    for name in ("config.json", "generation_config.json", "qwen.tiktoken"):
        assert (written / name).read_bytes() == (folder / name).read_bytes()


def test_the_reference_model_survives_the_round_trip(tmp_path):
    convert_weight(TINY, tmp_path / "tiny.ckpt")
    convert_reversed(tmp_path / "tiny.ckpt", tmp_path / "back")

    assert_same(load_folder(tmp_path / "back"), load_folder(TINY))


def test_a_small_model_is_one_file_without_an_index(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")

    files = {file.name for file in (tmp_path / "back").iterdir()}
    assert files == {"model.safetensors", "config.json", "generation_config.json", "qwen.tiktoken"}
    with safe_open(tmp_path / "back/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_large_model_is_shards_with_an_index(tmp_path, hf, monkeypatch):
    monkeypatch.setattr(checkpoint_save, "SHARD_BYTES", 2000)
    convert_weight(hf, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")

    weight_map = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == load_folder(tmp_path / "back").keys()
    assert len(set(weight_map.values())) > 1
    assert not (tmp_path / "back/param_name_map.json").exists()


def test_another_type_is_said_in_the_config(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back", dtype="float16")

    assert_same(load_folder(tmp_path / "back"), random_tensors(torch.float16))
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config == {**CONFIG, "fp16": True, "fp32": False}


def test_a_trainers_other_entries_are_left_out_with_a_word(tmp_path, hf, capsys):
    convert_weight(hf, tmp_path / "ms/qwen.ckpt")
    add_to_ckpt(tmp_path / "ms/qwen.ckpt", {
        "adam_m.lm_head.weight": ms.Tensor([[1.0]]), "global_step": 7, "note": "text",
        "transformer.layers.0.attention.key_cache": ms.Tensor([0], ms.int8)})

    convert_reversed(tmp_path / "ms/qwen.ckpt", tmp_path / "back")

    assert_same(load_folder(tmp_path / "back"), random_tensors())
    assert "left out 4 entries that are not weights of the model" in capsys.readouterr().err


def test_a_ckpt_with_a_checksum_is_read(tmp_path, hf):
    path = convert_weight(hf, tmp_path / "ms/qwen.ckpt")
    parameters = [{"name": name, "data": data} for name, data in ms.load_checkpoint(str(path)).items()]
    ms.save_checkpoint(parameters, str(path), crc_check=True)

    convert_reversed(path, tmp_path / "back")

    assert_same(load_folder(tmp_path / "back"), random_tensors())


def test_a_folder_of_one_ckpt_is_read_and_of_two_refused(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms/step_1.ckpt")
    convert_reversed(tmp_path / "ms", tmp_path / "back")
    assert_same(load_folder(tmp_path / "back"), random_tensors())

    convert_weight(hf, tmp_path / "ms/step_2.ckpt")
    with pytest.raises(ValueError, match="ms: more than one checkpoint .*step_1.ckpt, step_2.ckpt: name the file"):
        convert_reversed(tmp_path / "ms", tmp_path / "again")


def test_the_config_may_lie_elsewhere(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms/qwen.ckpt")
    (tmp_path / "ms/config.json").unlink()

    with pytest.raises(FileNotFoundError, match="config.json is missing: give .* with --config"):
        convert_reversed(tmp_path / "ms/qwen.ckpt", tmp_path / "back")
    convert_reversed(tmp_path / "ms/qwen.ckpt", tmp_path / "back", config=hf / "config.json")

    assert_same(load_folder(tmp_path / "back"), random_tensors())
    assert (tmp_path / "back/config.json").read_bytes() == (hf / "config.json").read_bytes()


@pytest.mark.parametrize("cut", [1, 100, 1500])
def test_a_truncated_ckpt_is_named(tmp_path, hf, cut):
    path = convert_weight(hf, tmp_path / "ms/qwen.ckpt")
    os.truncate(path, path.stat().st_size - cut)

    with pytest.raises(ValueError, match="qwen.ckpt: damaged or incomplete .*: fetch or make"):
        convert_reversed(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_file_that_is_no_checkpoint_is_named(tmp_path, hf):
    (hf / "qwen.ckpt").write_text("not a checkpoint")

    with pytest.raises(ValueError, match="qwen.ckpt: damaged or incomplete"):
        convert_reversed(hf / "qwen.ckpt", tmp_path / "back")
    with pytest.raises(ValueError, match="config.json: expected a .ckpt or .safetensors file"):
        convert_reversed(hf / "config.json", tmp_path / "back")
    with pytest.raises(FileNotFoundError, match="nothing.ckpt: no such file or folder"):
        convert_reversed(hf / "nothing.ckpt", tmp_path / "back")


def test_a_checkpoint_of_another_size_is_refused(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**CONFIG, "vocab_size": 12}))

    with pytest.raises(ValueError, match=r"embedding_weight has shape \[11, 8\], expected \[12, 8\]"):
        convert_reversed(tmp_path / "ms", tmp_path / "back", config=config)


def test_query_key_and_value_of_different_types_need_a_choice(tmp_path, hf):
    path = convert_weight(hf, tmp_path / "ms/qwen.ckpt")
    parameters = ms.load_checkpoint(str(path))
    name = "transformer.layers.0.attention.wq.weight"
    parameters[name] = ms.Parameter(parameters[name].astype(ms.float16))
    ms.save_checkpoint([{"name": key, "data": value} for key, value in parameters.items()], str(path))

    with pytest.raises(ValueError, match=f"{name} and .* in different types .*: choose one with --dtype"):
        convert_reversed(path, tmp_path / "back")
    convert_reversed(path, tmp_path / "back", dtype="float32")

    weight = load_folder(tmp_path / "back")["transformer.h.0.attn.c_attn.weight"]
    assert torch.equal(weight[12:], random_tensors()["transformer.h.0.attn.c_attn.weight"][12:])


@pytest.mark.process
def test_the_command_prints_the_path_and_nothing_else(tmp_path, hf):
    convert_weight(hf, tmp_path / "ms/qwen.ckpt")

    command = [sys.executable, SCRIPT, "--mindspore_ckpt_path", "ms/qwen.ckpt", "--torch_ckpt_path", "back"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert run.stdout == "back\n"
    assert (tmp_path / "back/model.safetensors").is_file()
