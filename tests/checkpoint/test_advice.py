"""Folders and files that are no checkpoint of Qwen: one line says what they are and what to do."""
import json

import pytest
import torch
from safetensors.torch import save_file as save_safetensors

from helpers.checkpoints import CONFIG, random_tensors, save, write_hf_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.checkpoint.files import HUGGING_FACE, Checkpoint, checkpoint_files, read_config
from qwen_mindspore.text.tokenizer import load_vocab

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2042\n"
REVISION = "abc123def456"
LORA = "a LoRA adapter, not a model: merge it into its base model first"


def hub_folder(cache, main=True):
    """A model in the hub's cache, whose files are links."""
    folder = cache / "models--Qwen--Qwen-7B"
    for name in ("refs", "blobs", f"snapshots/{REVISION}", "snapshots/zzz"):
        (folder / name).mkdir(parents=True)
    if main:
        (folder / "refs/main").write_text(REVISION)
    (folder / "blobs/0f3a").write_text(json.dumps(CONFIG))
    (folder / f"snapshots/{REVISION}/config.json").symlink_to("../../blobs/0f3a")
    return folder


def folders(tmp_path):
    """Name -> (a wrong folder, what is said of it)."""
    hub = hub_folder(tmp_path / "hub")
    for name in ("lora/x", "ranks/rank_0", "ranks/rank_1", "rank/rank_0", "parent/model", "gguf"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lora/adapter_config.json").write_text("{}")
    (tmp_path / "ranks/rank_0/qwen.ckpt").touch()
    (tmp_path / "parent/model/config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "gguf/qwen.gguf").touch()
    snapshot = hub / "snapshots" / REVISION
    return {
        "hub root": (hub, f"a folder of the hub's cache: give {snapshot}"),
        "hub": (tmp_path / "hub", f"the hub's cache of several models: give the folder of one, {snapshot} say"),
        "blobs": (hub / "blobs", f"a folder of the hub's cache: give {snapshot}"),
        "snapshots": (hub / "snapshots", f"give the folder in it that is meant, {snapshot} say"),
        "lora": (tmp_path / "lora", LORA),
        "ranks": (tmp_path / "ranks", "a checkpoint that is split over devices: merge it into one first"),
        "rank": (tmp_path / "rank", f"what the one device has written is in {tmp_path}/rank/rank_0: give that folder"),
        "parent": (tmp_path / "parent", f"give the folder in it that is meant, {tmp_path}/parent/model say"),
        "gguf": (tmp_path / "gguf", "a GGUF file is llama.cpp's: give the Hugging Face folder"),
    }


@pytest.mark.parametrize("kind", ["hub root", "hub", "blobs", "snapshots", "lora", "ranks", "rank", "parent", "gguf"])
def test_a_folder_that_is_something_else_is_recognized(tmp_path, kind):
    folder, said = folders(tmp_path)[kind]
    for read in (lambda: convert_weight(folder, tmp_path / "ms"), lambda: checkpoint_files(folder),
                 lambda: checkpoint_files(folder, HUGGING_FACE), lambda: convert_reversed(folder, tmp_path / "hf"),
                 lambda: read_config(folder / "config.json")):
        with pytest.raises(FileNotFoundError) as error:
            read()
        assert said in str(error.value)
        assert str(error.value).isprintable()


def test_without_a_main_branch_the_last_revision_is_named(tmp_path):
    folder = hub_folder(tmp_path, main=False)
    with pytest.raises(FileNotFoundError, match="hub's cache: give .*/snapshots/zzz"):
        checkpoint_files(folder)


def test_a_revision_in_the_hubs_cache_is_a_folder_like_any_other(tmp_path):
    folder = hub_folder(tmp_path)
    save(folder / "blobs/weights.safetensors", random_tensors())
    snapshot = folder / "snapshots" / REVISION
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights.safetensors")
    assert convert_weight(snapshot, tmp_path / "ms") == tmp_path / "ms"


def test_an_adapters_file_is_no_checkpoint_however_it_is_given(tmp_path):
    save(tmp_path / "adapter_model.safetensors", {"base_model.model.lora_A.weight": torch.ones(1)})
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(ValueError, match=LORA):
            checkpoint_files(path)


@pytest.mark.parametrize("config, said", [
    ({**CONFIG, "visual": {"layers": 48}}, "visual: this is a Qwen-VL, which reads images: give a text model"),
    ({**CONFIG, "audio": {}}, "audio: this is a Qwen-Audio, which hears: give a text model"),
    ({"model_type": "qwen2"}, "model_type: expected 'qwen' .*, found 'qwen2': give the folder of a model that"),
    ({"model_type": "llama"}, "found 'llama': give the folder of a model"),
    ({"model_type": ["qwen"]}, r"found \['qwen'\]: give the folder"),
    ({"architectures": ["QWenLMHeadModel"]}, "found None: give the folder"),
])
def test_another_model_is_named(tmp_path, config, said):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), config)
    with pytest.raises(ValueError, match=said) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value).startswith(f"{folder}/config.json: ")
    assert not (tmp_path / "ms").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "qwen.tiktoken"])
def test_a_pointer_of_git_lfs_is_named_whatever_it_stands_for(tmp_path, name):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value) == (f"{folder}/{name}: a git-lfs pointer, not the file itself: run `git lfs pull` in its "
                                "folder, or download the file")
    assert not (tmp_path / "ms").exists()


def test_a_vocabulary_that_is_a_pointer_is_named(tmp_path):
    (tmp_path / "qwen.tiktoken").write_text(POINTER)
    with pytest.raises(ValueError, match=r"qwen.tiktoken: a git-lfs pointer, not the file itself: run `git lfs pull`"):
        load_vocab(tmp_path / "qwen.tiktoken")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".safetensors"])
def test_weights_that_are_a_pointer_are_named_in_every_format(tmp_path, suffix):
    from qwen_mindspore.checkpoint.files import Checkpoint
    (tmp_path / f"x{suffix}").write_text(POINTER)
    with pytest.raises(ValueError, match=f"x{suffix}: a git-lfs pointer"):
        Checkpoint([tmp_path / f"x{suffix}"])


def test_names_of_the_other_side_are_told(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    convert_weight(folder, tmp_path / "ms")
    with pytest.raises(ValueError, match="these are MindSpore names: convert it with convert/convert_reversed.py"):
        convert_weight(tmp_path / "ms", tmp_path / "again")
    with pytest.raises(ValueError, match="these are Hugging Face names: convert it with convert/convert_weight.py"):
        convert_reversed(folder, tmp_path / "back")


def old_format(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("written, name, said", [
    (save_safetensors, "pytorch_model.bin", "this is a safetensors file: give it a name that ends in .safetensors"),
    (torch.save, "model.safetensors", "this is a file of torch.save: give it a name that ends in .bin, pytorch"),
    (old_format, "model.safetensors", "this is a file of torch.save"),
], ids=["safetensors", "torch", "old_torch"])
def test_weights_under_another_formats_name_are_named(tmp_path, written, name, said):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (folder / "model.safetensors").unlink()
    written(random_tensors(), folder / name)
    with pytest.raises(ValueError) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value).startswith(f"{folder}/{name}: {said}")
    assert not (tmp_path / "ms").exists()


@pytest.mark.parametrize("written", [save_safetensors, torch.save])
def test_weights_under_the_name_of_a_ckpt_are_named(tmp_path, written):
    written(random_tensors(), tmp_path / "qwen.ckpt")
    with pytest.raises(ValueError, match="qwen.ckpt: this is a (safetensors file|file of torch.save): give it a name"):
        Checkpoint(checkpoint_files(tmp_path / "qwen.ckpt"))


@pytest.mark.parametrize("content, said", [
    (b"<!DOCTYPE html><html>Sign in", "a web page"), (b"\n<html>", "a web page"), (b"GGUF\3\0\0\0", "a GGUF file"),
    (b"<?xml version='1.0'?><Error>", "an XML page"), (b"\x1f\x8b\x08\0", "a gzip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"), (b'{"error": "401"}', "a JSON text"),
])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_what_came_in_place_of_weights_is_named(tmp_path, content, said, name):
    folder = write_hf_folder(tmp_path / "hf", random_tensors())
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content + b" " * 50)
    with pytest.raises(ValueError) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value) == f"{folder}/{name}: damaged or incomplete (this is {said}): fetch or make the file again"


def test_a_file_in_place_of_its_folder(tmp_path):
    file = write_hf_folder(tmp_path / "hf", random_tensors()) / "model.safetensors"
    with pytest.raises(NotADirectoryError, match="model.safetensors: this is a file: give the folder that it is in"):
        convert_weight(file, tmp_path / "ms")
