"""Opening a checkpoint: a file, a folder by its index, or the one complete set in it; all else is refused by name."""
import json

import pytest
import torch
from safetensors.torch import save_file

from helpers.checkpoints import random_tensors, write_hf_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.checkpoint.files import ANY, HUGGING_FACE, MINDSPORE, Checkpoint, checkpoint_files, read_config

INDEX = "model.safetensors.index.json"


def make(folder, *names):
    """Files of these names, of which only the names matter."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def index(folder, *names, path=INDEX):
    (folder / path).write_text(json.dumps({"weight_map": {f"tensor.{name}": name for name in names}}))
    return folder


def opened(folder, patterns=MINDSPORE):
    return [file.name for file in checkpoint_files(folder, patterns)]


# What is opened

@pytest.mark.parametrize("name", ["qwen.ckpt", "x.safetensors"])
def test_a_file_is_itself_whatever_lies_beside_it(tmp_path, name):
    make(tmp_path, name, "other.ckpt", "other.safetensors")
    assert checkpoint_files(tmp_path / name) == [tmp_path / name]
    assert checkpoint_files(str(tmp_path / name)) == [tmp_path / name]


@pytest.mark.parametrize("names", [
    ["qwen.ckpt"], ["anything.safetensors"], ["model-00001-of-00001.safetensors"],
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"],
    ["qwen-1-of-2.ckpt", "qwen-2-of-2.ckpt"]])
def test_without_an_index_one_complete_set_is_opened(tmp_path, names):
    make(tmp_path, *names, "config.json", "qwen.tiktoken", "notes.txt")
    assert opened(tmp_path) == names


def test_a_folder_goes_by_its_index_and_a_stray_file_is_not_read(tmp_path):
    make(tmp_path, "a.safetensors", "b.safetensors", "z.safetensors", "model-00001-of-00009.safetensors", "x.ckpt")
    assert opened(index(tmp_path, "a.safetensors", "b.safetensors")) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("path, name, patterns", [
    ("pytorch_model.bin.index.json", "part.bin", HUGGING_FACE),
    ("other.safetensors.index.json", "x.safetensors", ANY)])
def test_an_index_may_have_any_name_before_its_suffix(tmp_path, path, name, patterns):
    make(tmp_path, name, f"model-00001-of-00002.{name.partition('.')[2]}")
    assert opened(index(tmp_path, name, path=path), patterns) == [name]


def test_our_copy_of_the_index_for_mindspore_is_none(tmp_path):
    index(make(tmp_path, "x.safetensors"), "gone.safetensors", path="param_name_map.json")
    assert opened(tmp_path) == ["x.safetensors"]


def test_safetensors_come_before_others(tmp_path):
    make(tmp_path, "model.safetensors", "qwen.ckpt", "pytorch_model.bin")
    assert opened(tmp_path) == ["model.safetensors"]
    assert opened(tmp_path, HUGGING_FACE) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert opened(tmp_path) == ["qwen.ckpt"]
    assert opened(tmp_path, HUGGING_FACE) == ["pytorch_model.bin"]


def test_other_files_of_a_hugging_face_folder_are_no_weights(tmp_path):
    make(tmp_path, "training_args.bin", "optimizer.bin", "adapter_model.safetensors", "pytorch_model.bin")
    assert opened(tmp_path, HUGGING_FACE) == ["pytorch_model.bin"]


def test_folders_of_ranks_are_not_ours(tmp_path):
    make(tmp_path / "rank_0", "qwen.ckpt")
    with pytest.raises(FileNotFoundError, match="no .safetensors or .ckpt file in this folder"):
        checkpoint_files(tmp_path)


# What is refused

@pytest.mark.parametrize("names, message", [
    (["x_20.ckpt", "x_100.ckpt"], "more than one checkpoint in this folder, x_100.ckpt, x_20.ckpt: name the file"),
    (["model.safetensors", "adapter.safetensors"], "adapter.safetensors, model.safetensors: name the file"),
    (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "stale.safetensors"],
     "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, stale.safetensors: name"),
    (["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
     "more than one checkpoint"),
    (["a-1-of-2.ckpt", "b-2-of-2.ckpt"], "more than one checkpoint"),
    (["model-1-of-2.safetensors", "model-01-of-2.safetensors", "model-2-of-2.safetensors"], "3 files for 2 shards"),
    (["model-1-of-1.safetensors", "model-2-of-1.safetensors"], "2 files for 1 shards"),
    (["model.safetensors", "other.safetensors", "qwen.ckpt"], "model.safetensors, other.safetensors: name"),
    ([f"{letter}.ckpt" for letter in "abcdefgh"], r"a.ckpt, b.ckpt, c.ckpt, d.ckpt, e.ckpt, ... \(8 files\): name"),
])
def test_more_than_one_checkpoint_is_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_files(make(tmp_path, *names))


def test_two_sets_of_one_suffix_are_refused_in_a_hugging_face_folder_too(tmp_path):
    make(tmp_path, "model.safetensors", "gptq_model-4bit-128g.safetensors")
    with pytest.raises(ValueError, match="gptq_model-4bit-128g.safetensors, model.safetensors: name the file"):
        checkpoint_files(tmp_path, HUGGING_FACE)


@pytest.mark.parametrize("names, missing", [
    (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
     r"model-00002-of-00003.safetensors is missing \(1 of 3 shards are\)"),
    (["qwen-2-of-12.ckpt"], r"qwen-1-of-12.ckpt is missing \(11 of 12 shards are\)")])
def test_a_missing_shard_is_named(tmp_path, names, missing):
    with pytest.raises(FileNotFoundError, match=missing):
        checkpoint_files(make(tmp_path, *names))


def test_a_missing_file_that_the_index_names_is_named(tmp_path):
    index(make(tmp_path, "a.safetensors", "c.safetensors"), "a.safetensors", "b.safetensors")
    with pytest.raises(FileNotFoundError, match="b.safetensors is missing, but model.safetensors.index.json names it"):
        checkpoint_files(tmp_path)


def test_two_indexes_are_refused(tmp_path):
    make(tmp_path, "a.safetensors")
    index(tmp_path, "a.safetensors")
    index(tmp_path, "a.safetensors", path="adapter.safetensors.index.json")
    with pytest.raises(ValueError, match=f"2 indexes, adapter.safetensors.index.json, {INDEX}: keep the one"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize("text, message", [
    ("{", "not valid JSON"), ("[]", "expected a JSON object"), ("{}", "weight_map: expected the file of each tensor"),
    ('{"weight_map": {}}', "weight_map: expected"), ('{"weight_map": {"a": 1}}', "weight_map: expected"),
    ('{"weight_map": []}', "weight_map: expected"),
    ('{"weight_map": {"a": "config.json"}}', "expected files of .safetensors, .bin, .ckpt, found config.json")])
def test_an_index_that_is_none_is_named(tmp_path, text, message):
    make(tmp_path, "model.safetensors", "config.json")
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX}: .*{message}"):
        checkpoint_files(tmp_path)


def test_what_is_not_there_or_not_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such file or folder"):
        checkpoint_files(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no checkpoint here, expected model"):
        checkpoint_files(tmp_path, HUGGING_FACE)
    make(tmp_path, "model.bin", "notes.txt")
    with pytest.raises(ValueError, match="model.bin: expected a .ckpt or .safetensors file, or a folder of them"):
        checkpoint_files(tmp_path / "model.bin")
    with pytest.raises(ValueError, match="notes.txt: expected a .bin or .safetensors file"):
        checkpoint_files(tmp_path / "notes.txt", HUGGING_FACE)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1), name: torch.zeros(1)}, tmp_path / name)
    index(tmp_path, "a.safetensors", "b.safetensors")
    with pytest.raises(ValueError, match="x is both in .*a.safetensors and in .*b.safetensors: name the one"):
        Checkpoint(checkpoint_files(tmp_path))


@pytest.mark.parametrize("text, message", [
    ("{}", r"model_type: expected 'qwen' \(the first generation\), found None"),
    ('{"model_type": "llama"}', r"model_type: expected 'qwen' \(the first generation\), found 'llama'"),
    ("[1]", "expected a JSON object, found list")])
def test_a_config_of_another_model_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: {message}"):
        read_config(tmp_path / "config.json")


# Everybody opens it this way

def test_a_stale_file_beside_the_checkpoint_changes_nothing_for_anybody(tmp_path):
    from qwen_mindspore.batch.assemble import checkpoint_digest
    from qwen_mindspore.model.torch_qwen import TorchQwen

    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    convert_weight(folder, tmp_path / "ms")
    digest = checkpoint_digest(tmp_path / "ms")
    save_file({"lm_head.weight": torch.zeros(11, 8)}, tmp_path / "ms/zzz.safetensors")
    assert checkpoint_digest(tmp_path / "ms") == digest
    convert_reversed(tmp_path / "ms", tmp_path / "back")
    config = {"layer_norm_epsilon": 1e-6, "rotary_emb_base": 1e4, **json.loads((folder / "config.json").read_text())}
    for place in (folder, tmp_path / "back"):
        (place / "config.json").write_text(json.dumps(config))
        assert torch.equal(TorchQwen.from_folder(place).head, random_tensors()["lm_head.weight"])
