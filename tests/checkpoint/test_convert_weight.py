"""Hugging Face to MindSpore: what is written, what is refused, and that a failure leaves nothing behind."""
import errno
import json
import os
import subprocess
import sys
from collections import namedtuple

import mindspore as ms
import numpy as np
import pytest
import torch

from helpers import ROOT
from helpers.checkpoints import CONFIG, bits, load_folder, random_tensors, save, write_hf_folder
from qwen_mindspore.checkpoint import formats as checkpoint_formats
from qwen_mindspore.checkpoint import save as checkpoint_save
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.files import Checkpoint
from qwen_mindspore.checkpoint.names import hf_to_ms
from qwen_mindspore.common import files

SCRIPT = ROOT / "convert/convert_weight.py"
OUTPUTS = ("out/qwen.ckpt", "out/qwen.safetensors", "out")
QUERY, EMBEDDING = "transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"


def expected(tensors):
    """{MindSpore name: tensor} by the table."""
    return {name: torch.cat([tensors[piece.name][piece.first:piece.last] for piece in tensor.pieces])
            for name, tensor in hf_to_ms(CONFIG).items()}


def load_in_mindspore(output):
    """{name: Parameter}, as MindSpore itself reads the file or the folder's files."""
    files = [output] if output.is_file() else sorted(output.glob("*.safetensors"))
    parameters = {}
    for file in files:
        parameters |= ms.load_checkpoint(str(file), format=file.suffix[1:])
    return parameters


def mindspore_bits(parameter):
    if parameter.dtype == ms.bfloat16:
        parameter = parameter.view(ms.int16)
    return torch.from_numpy(parameter.asnumpy().reshape(-1).view(np.uint8))


def assert_same(parameters, tensors):
    assert parameters.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tuple(parameters[name].shape) == tuple(tensor.shape)
        assert str(parameters[name].dtype).lower() == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(mindspore_bits(parameters[name]), bits(tensor)), name


def assert_nothing_left(tmp_path):
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output", OUTPUTS)
def test_mindspore_reads_every_tensor_bit_exact(tmp_path, output, dtype):
    tensors = random_tensors(dtype)

    written = convert_weight(write_hf_folder(tmp_path / "hf", tensors), tmp_path / output)

    assert written == tmp_path / output
    assert_same(load_in_mindspore(written), expected(tensors))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(("shards", "index"), [(1, False), (3, True), (3, False)])
def test_every_kind_of_hugging_face_folder_is_read(tmp_path, suffix, shards, index):
    tensors = random_tensors(torch.bfloat16)
    folder = write_hf_folder(tmp_path / "hf", tensors, shards=shards, suffix=suffix, index=index)

    convert_weight(folder, tmp_path / "ms")

    assert_same(load_in_mindspore(tmp_path / "ms"), expected(tensors))


def test_safetensors_are_preferred_to_bin(tmp_path):
    tensors = random_tensors()
    folder = write_hf_folder(tmp_path / "hf", tensors)
    save(folder / "pytorch_model.bin", {name: tensor + 1 for name, tensor in tensors.items()})

    convert_weight(folder, tmp_path / "ms")

    assert_same(load_in_mindspore(tmp_path / "ms"), expected(tensors))


def test_a_ckpt_is_byte_for_byte_what_mindspore_saves(tmp_path):
    convert_weight(write_hf_folder(tmp_path / "hf", random_tensors(torch.bfloat16)), tmp_path / "ours.ckpt")

    loaded = ms.load_checkpoint(str(tmp_path / "ours.ckpt"))
    ms.save_checkpoint([{"name": name, "data": loaded[name]} for name in loaded], str(tmp_path / "its.ckpt"))

    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "its.ckpt").read_bytes()


@pytest.mark.parametrize("output", OUTPUTS)
def test_big_tensors_go_through_in_chunks_shards_and_slices(tmp_path, monkeypatch, output):
    monkeypatch.setattr(checkpoint_save, "CHUNK_BYTES", 100)
    monkeypatch.setattr(checkpoint_save, "SHARD_BYTES", 1000)
    monkeypatch.setattr(checkpoint_formats, "CKPT_SLICE", 70)
    sizes = []
    read = Checkpoint.read

    def read_and_measure(*args):
        rows = read(*args)
        sizes.append(rows.nbytes)
        return rows

    monkeypatch.setattr(Checkpoint, "read", read_and_measure)
    tensors = random_tensors()

    convert_weight(write_hf_folder(tmp_path / "hf", tensors), tmp_path / output)

    assert_same(load_in_mindspore(tmp_path / output), expected(tensors))
    assert max(sizes) <= 100


def test_a_folder_has_numbered_shards_and_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_save, "SHARD_BYTES", 3300)

    convert_weight(write_hf_folder(tmp_path / "hf", random_tensors()), tmp_path / "ms")

    index = json.loads((tmp_path / "ms/model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in (tmp_path / "ms").glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["weight_map"].keys() == load_folder(tmp_path / "ms").keys()
    # The name under which MindSpore's distributed loading looks for it.
    assert json.loads((tmp_path / "ms/param_name_map.json").read_text()) == index


@pytest.mark.parametrize("output", OUTPUTS)
def test_config_and_vocabulary_travel_along_unchanged(tmp_path, output):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())

    convert_weight(folder, tmp_path / output, dtype="float32")

    for name in ("config.json", "generation_config.json", "qwen.tiktoken"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_another_type_is_rounded_to_and_said_in_the_config(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), {**CONFIG, "torch_dtype": "float32"})

    convert_weight(folder, tmp_path / "ms", dtype="bfloat16")

    assert_same(load_in_mindspore(tmp_path / "ms"), expected(random_tensors(torch.bfloat16)))
    config = json.loads((tmp_path / "ms/config.json").read_text())
    assert config == {**CONFIG, "torch_dtype": "bfloat16", "bf16": True, "fp32": False}


def test_values_beyond_a_type_are_refused(tmp_path):
    tensors = random_tensors(torch.bfloat16)
    tensors[EMBEDDING][3, 3] = 1e6

    with pytest.raises(ValueError, match=f"{EMBEDDING} has values up to 999424, beyond the range of float16"):
        convert_weight(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "ms", dtype="float16")
    assert_nothing_left(tmp_path)


def test_saved_buffers_are_left_out(tmp_path):
    buffers = ("rotary_emb.inv_freq", "h.0.attn.masked_bias", "h.0.attn.bias")
    tensors = {**random_tensors(), **{f"transformer.{name}": torch.ones(1) for name in buffers}}

    convert_weight(write_hf_folder(tmp_path / "hf", tensors, suffix=".bin"), tmp_path / "ms")

    assert_same(load_in_mindspore(tmp_path / "ms"), expected(random_tensors()))


def without(name):
    tensors = random_tensors()
    del tensors[name]
    return tensors


@pytest.mark.parametrize(("tensors", "message"), [
    (without(QUERY), rf"{QUERY} is missing \(1 of 19 tensors are\): fetch"),
    ({**random_tensors(), QUERY: torch.ones(24, 8)}, rf"{QUERY} has shape \[24, 8\], expected \[36, 8\]"),
    ({**random_tensors(), QUERY: torch.ones(36, 8).int()}, f"{QUERY} has type .*, expected float32, "),
    ({**random_tensors(), "transformer.visual.proj": torch.ones(1)}, "visual.proj is not a tensor of"),
])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_tensors_that_are_not_the_models_are_named(tmp_path, tensors, message, suffix):
    with pytest.raises(ValueError, match=message):
        convert_weight(write_hf_folder(tmp_path / "hf", tensors, suffix=suffix), tmp_path / "ms")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_truncated_shard_is_named(tmp_path, suffix):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), shards=2, suffix=suffix)
    shard = next(folder.glob(f"*00002-of-00002{suffix}"))
    os.truncate(shard, shard.stat().st_size - 100)

    with pytest.raises(ValueError, match=f"{shard}: damaged or incomplete .*: fetch"):
        convert_weight(folder, tmp_path / "ms")
    assert_nothing_left(tmp_path)


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors is missing"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (folder / name).unlink()

    with pytest.raises(FileNotFoundError, match="config.json is missing|no checkpoint here, expected model"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "qwen2"}, r"config.json: model_type: expected 'qwen' \(the first generation\), found 'qwen2'"),
    ({"quantization_config": {"bits": 4}}, "expected at least bits and group_size, found {'bits': 4}"),
    ({"quantization_config": {"bits": 4, "group_size": 128}}, "no tensor is quantized, though the config says so"),
    ({"kv_channels": 4}, r"expected \[24, 8\] by config.json"),
])
def test_another_kind_of_model_is_refused(tmp_path, change, message):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), {**CONFIG, **change})

    with pytest.raises(ValueError, match=message):
        convert_weight(folder, tmp_path / "ms")
    assert_nothing_left(tmp_path)


def test_a_quantize_config_beside_the_weights_is_seen_too(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (folder / "quantize_config.json").write_text("{}")

    with pytest.raises(ValueError, match="expected at least bits and group_size, found {}"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, output):
    def write_a_little(file, *_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_save, "write_ckpt", write_a_little)
    monkeypatch.setattr(checkpoint_save, "write_safetensors", write_a_little)

    with pytest.raises(OSError, match="the disk is full, nothing was written: make room"):
        convert_weight(write_hf_folder(tmp_path / "hf", random_tensors()), tmp_path / "deep" / output)
    assert_nothing_left(tmp_path)


def test_a_disk_too_small_is_seen_before_the_work(tmp_path, monkeypatch):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(100))

    with pytest.raises(OSError, match="the disk is full, 0.0 GB needed, 0.0 GB free"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, output):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    read = Checkpoint.read

    def read_until_the_second_layer(checkpoint, name, first, last):
        if name == QUERY:
            raise KeyboardInterrupt
        return read(checkpoint, name, first, last)

    monkeypatch.setattr(Checkpoint, "read", read_until_the_second_layer)

    with pytest.raises(KeyboardInterrupt):
        convert_weight(folder, tmp_path / output)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_older_checkpoint_is_replaced_only_on_request(tmp_path, monkeypatch, output):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_save, "SHARD_BYTES", 1000)
        convert_weight(folder, tmp_path / output)

    with pytest.raises(FileExistsError, match="exists: choose another place, or replace it with --overwrite"):
        convert_weight(folder, tmp_path / output)
    convert_weight(folder, tmp_path / output, dtype="float16", overwrite=True)

    # Shards of the older checkpoint that the new one does not have are gone too.
    assert_same(load_in_mindspore(tmp_path / output), expected(random_tensors(torch.float16)))


def test_another_models_config_is_not_overwritten(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(FileExistsError, match="config.json is of another model or type"):
        convert_weight(folder, tmp_path / "qwen.ckpt")
    assert not (tmp_path / "qwen.ckpt").exists()


@pytest.mark.parametrize("output", ["hf", "hf/model.safetensors"])
def test_the_checkpoint_being_read_is_never_overwritten(tmp_path, output):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())

    with pytest.raises(ValueError, match="model.safetensors is being read: write to another place"):
        convert_weight(folder, tmp_path / output, overwrite=True)


def test_foreign_weights_in_the_folder_are_neither_mixed_in_nor_removed(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (tmp_path / "ms").mkdir()
    (tmp_path / "ms/adapter.safetensors").touch()

    with pytest.raises(FileExistsError, match="adapter.safetensors would be loaded with the new checkpoint"):
        convert_weight(folder, tmp_path / "ms", overwrite=True)
    assert (tmp_path / "ms/adapter.safetensors").exists()


@pytest.mark.process
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_process_that_is_killed_leaves_no_half_and_the_next_one_nothing_else(tmp_path, output):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    killed = ("import os, signal, sys\nfrom qwen_mindspore.checkpoint import convert, save\n"
              "save.write_safetensors = save.write_ckpt = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
              "convert.convert_weight(*sys.argv[1:])")
    run = subprocess.run([sys.executable, "-c", killed, folder, tmp_path / output], check=False)

    assert run.returncode == -9
    assert list((tmp_path / "out").glob("[!.]*")) == []
    convert_weight(folder, tmp_path / output)
    assert_same(load_in_mindspore(tmp_path / output), expected(random_tensors()))
    assert not [*tmp_path.glob(".*"), *(tmp_path / "out").glob(".*")]


@pytest.mark.process
def test_the_command_prints_the_path_and_nothing_else(tmp_path):
    write_hf_folder(tmp_path / "hf", random_tensors())

    command = [sys.executable, SCRIPT, "--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "run/qwen.ckpt"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert run.stdout == "run/qwen.ckpt\n"
    assert "100%" in run.stderr
    assert (tmp_path / "run/qwen.ckpt").is_file()


@pytest.mark.process
def test_the_command_fails_with_one_line(tmp_path):
    command = [sys.executable, SCRIPT, "--torch_ckpt_dir", "nowhere"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == "convert_weight: nowhere/config.json is missing: the model's config.json is needed\n"
