"""What torch.save writes, and what people do with it: both formats, dicts in dicts, prefixes; all else is named."""
import collections
import datetime

import pytest
import torch

from helpers.checkpoints import load_folder, random_tensors, same_bits, save, write_hf_folder
from qwen_mindspore.checkpoint import torch_file
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.files import Checkpoint
from qwen_mindspore.checkpoint.formats import TorchFile


def old_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def folder_with(tmp_path, content, write=torch.save):
    """A Hugging Face folder whose weights are whatever `content` is."""
    folder = write_hf_folder(tmp_path / "hf", {}, suffix=".bin")
    write(content, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def expected(tmp_path):
    """The tensors of the ordinary checkpoint, converted."""
    convert_weight(write_hf_folder(tmp_path / "plain", random_tensors()), tmp_path / "expected")
    return load_folder(tmp_path / "expected")


def assert_converts(folder, expected):
    convert_weight(folder, folder.parent / "ms")
    written = load_folder(folder.parent / "ms")
    assert written.keys() == expected.keys()
    assert all(same_bits(written[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("shards", [1, 3])
def test_the_format_before_the_zip_archive_is_read(tmp_path, expected, shards):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), shards=shards, suffix=".bin")
    for file in folder.glob("*.bin"):
        old_format(torch.load(file), file)

    assert_converts(folder, expected)


def test_one_file_of_the_old_format_is_in_memory_at_a_time(tmp_path, monkeypatch):
    reads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **kwargs: reads.append(path.name) or load(path, **kwargs))
    for name in ("a", "b"):
        old_format({name: torch.ones(2), f"{name}2": torch.ones(3)}, tmp_path / f"{name}.bin")

    checkpoint = Checkpoint([tmp_path / "a.bin", tmp_path / "b.bin"])
    for name in ("b", "b2", "a", "a2", "a"):
        checkpoint.read(name, 0, 2)

    assert reads == ["a.bin", "b.bin", "a.bin"]
    first, second = checkpoint._readers["a"], checkpoint._readers["b"]
    assert first._kept is not None and second._kept is None


@pytest.mark.parametrize("wrap", [
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    lambda tensors: {"module": tensors, "lr_scheduler": None},
    lambda tensors: {"model_state_dict": collections.OrderedDict(tensors)},
    lambda tensors: {"model": {"state_dict": tensors}},
], ids=["state_dict", "model", "module", "model_state_dict", "two"])
def test_the_state_dict_in_a_trainers_dict_is_found_and_said(tmp_path, expected, capsys, wrap):
    assert_converts(folder_with(tmp_path, wrap(random_tensors())), expected)
    assert "checkpoint: " in capsys.readouterr().err


def test_what_is_left_out_of_a_trainers_dict_is_said(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "x.bin")
    assert list(TorchFile(tmp_path / "x.bin").tensors) == ["a"]
    assert capsys.readouterr().err == (
        f"checkpoint: {tmp_path}/x.bin: the weights are those in ['state_dict']; left out: 'epoch'\n")


@pytest.mark.parametrize("prefix", ["module.", "model.", "base_model.model.", "_orig_mod.", "module._orig_mod.",
                                    "network.", "_backbone."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_wrappers_prefix_is_taken_from_the_names_and_said(tmp_path, expected, capsys, prefix, suffix):
    tensors = {prefix + name: tensor for name, tensor in random_tensors().items()}
    assert_converts(write_hf_folder(tmp_path / "hf", tensors, suffix=suffix), expected)
    assert f"the names of its tensors are read without '{prefix}'" in capsys.readouterr().err


def test_two_prefixes_are_two_models_and_none_is_guessed(tmp_path):
    tensors = {prefix + name: tensor + 0 for name, tensor in random_tensors().items() for prefix in ("ema.", "model.")}
    tensors |= {f"module.{name}": tensor for name, tensor in random_tensors().items()}
    folder = write_hf_folder(tmp_path / "hf", tensors)
    with pytest.raises(ValueError, match="transformer.wte.weight is missing .* its tensors have other names, 'ema.lm"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("prefix", ["adam_m.", "ema.", "student."])
def test_a_prefix_that_means_something_else_is_not_taken_away(tmp_path, prefix):
    tensors = {prefix + name: tensor for name, tensor in random_tensors().items()}
    folder = write_hf_folder(tmp_path / "hf", tensors)
    with pytest.raises(ValueError, match=f"is missing .* its tensors have other names, '{prefix}lm_head.weight' for"):
        convert_weight(folder, tmp_path / "ms")


LORA = "transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize("tensors", [
    {f"base_model.model.{LORA}": torch.ones(1)},
    {f"base_model.model.{name.replace('.weight', '.base_layer.weight')}": tensor
     for name, tensor in random_tensors().items()} | {f"base_model.model.{LORA}": torch.ones(1)},
])
def test_an_adapter_among_the_weights_is_explained(tmp_path, tensors, capsys):
    folder = write_hf_folder(tmp_path / "hf", tensors)
    with pytest.raises(ValueError, match=r"a LoRA adapter, not a model: merge it .*merge_and_unload"):
        convert_weight(folder, tmp_path / "ms")
    assert "read without" not in capsys.readouterr().err


@pytest.mark.parametrize("content, message", [
    (torch.ones(3), "expected a dict of tensors by name, found one tensor: save the state_dict"),
    ([torch.ones(3)], "expected a dict of tensors by name, found list"),
    ((), "expected a dict of tensors by name, found tuple"),
    (7, "expected a dict of tensors by name, found int"),
    (None, "expected a dict of tensors by name, found NoneType"),
    ({}, "expected a dict of tensors by name, found one of nothing"),
    ({"epoch": 3}, "expected a dict of tensors by name, found one of 'epoch'"),
    ({"ema": {"a": torch.ones(1)}}, "found one of 'ema'"),
    ({"state_dict": [1]}, "found one of 'state_dict'"),
    ({"state_dict": {"x": 3}}, r"\['state_dict'\]: expected a dict of tensors by name, found one of 'x'"),
    ({"model": {"a": torch.ones(1)}, "module": {"a": torch.ones(1)}}, "model and module may both be the model"),
    ({0: torch.ones(1)}, "expected tensors by name, found one of the key 0"),
    ({"a": torch.ones(2).to_sparse()}, "'a' is no ordinary tensor"),
    ({"a": torch.ones(2, device="meta")}, "'a' is no ordinary tensor"),
    ({"a\nb": torch.ones(2)}, r"'a\\nb' of type 'float32' is no tensor"),
])
@pytest.mark.parametrize("write", [torch.save, old_format], ids=["zip", "old"])
def test_what_is_no_dict_of_tensors_is_named(tmp_path, content, message, write):
    folder = folder_with(tmp_path, content, write)
    with pytest.raises(ValueError, match=message) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value).startswith(f"{folder}/pytorch_model.bin")
    assert str(error.value).isprintable()


class Code:
    """Runs when it is unpickled by somebody careless."""

    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize("content, name", [
    ({"a": Code()}, "print"), (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ({"when": datetime.date(2023, 8, 3)}, "datetime.date")])
@pytest.mark.parametrize("write", [torch.save, old_format], ids=["zip", "old"])
def test_a_pickle_that_needs_code_is_one_line_and_runs_none(tmp_path, content, name, write, capfd):
    folder = folder_with(tmp_path, content, write)
    with pytest.raises(ValueError) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(error.value) == (
        f"{folder}/pytorch_model.bin: more than tensors: it asks to run {name}, which is not done: fetch the model's "
        "safetensors, or save its state_dict() alone where you trust this file")
    assert "it ran" not in capfd.readouterr().out


@pytest.mark.parametrize("data", [b"", b"P", b"PK\x03\x04", b"\x80\x02.", b"<html>404</html>", bytes(200)])
def test_what_torch_never_wrote_is_damaged(tmp_path, data):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ValueError, match="damaged or incomplete .*: fetch or make the file again") as error:
        TorchFile(tmp_path / "pytorch_model.bin")
    assert str(error.value).isprintable()


def test_nothing_is_kept_once_nobody_reads(tmp_path):
    old_format({"a": torch.ones(2)}, tmp_path / "a.bin")
    TorchFile(tmp_path / "a.bin")
    assert torch_file.TorchFile._holder() is None


def test_a_mindspore_checkpoint_may_have_a_prefix_too(tmp_path, expected):
    save(tmp_path / "x.safetensors", {f"network.{name}": tensor for name, tensor in expected.items()})
    checkpoint = Checkpoint([tmp_path / "x.safetensors"])
    assert checkpoint.tensors.keys() == expected.keys()
    assert same_bits(checkpoint.read("lm_head.weight", 2, 5), expected["lm_head.weight"][2:5])
