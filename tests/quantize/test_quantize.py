"""quantize.py on the golden model: what it writes, from which formats, and that an interrupted run goes on."""
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import ROOT
from helpers.checkpoints import load_folder
from helpers.file_operations import replace_operation
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.names import hf_to_ms, linear_name, ms_to_hf
from qwen_mindspore.checkpoint.packing import Quantization, dequantize
from qwen_mindspore.cli.quantize import parse_args
from qwen_mindspore.model.torch_qwen import TorchQwen
from qwen_mindspore.quantize import layers as quantize_layers
from qwen_mindspore.quantize.run import check_gptq_shapes, quantize, working_folder

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want " * 8
LENGTH = 32


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A calibration text of some 850 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def run(checkpoint, output, *options, text=None):
    """quantize.py with these options, GPTQ if there is a text."""
    method = ["--method", "rtn"] if text is None else ["--data", text, "--length", LENGTH]
    command = ["--load_checkpoint", checkpoint, "--output", output, *method, *options]
    return quantize(parse_args(list(map(str, command))))


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def weights_of(folder):
    """{MindSpore name: float32 tensor} of a folder, what is quantized as what it stands for."""
    tensors, settings = load_folder(folder), Quantization.from_dict(read_config(folder).get("quantization"))
    found = {}
    for name, tensor in tensors.items():
        base = linear_name(name)
        if name.endswith((".scales", ".zeros", ".order")):
            continue
        if tensor.dtype != torch.uint8:
            found[name] = tensor.float()
            continue
        order = tensors[f"{base}.order"].numpy() if f"{base}.order" in tensors else None
        found[name] = torch.from_numpy(dequantize(
            tensor.numpy(), tensors[f"{base}.scales"].numpy(), tensors[f"{base}.zeros"].numpy(), settings.bits,
            settings.group_size, order))
    return found


def torch_model(folder):
    """A folder's model in torch, with the weights that quantized ones stand for."""
    config, weights = read_config(folder), weights_of(folder)
    config.pop("quantization", None)
    return TorchQwen(config, {name: torch.cat([weights[piece.name] for piece in tensor.pieces])
                              for name, tensor in ms_to_hf(config).items()})


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What is written

@pytest.mark.parametrize("bits, group_size, options", [
    (4, 32, []), (8, 24, ["--asym"]), (4, -1, ["--quantize_head", "--quantize_embedding"])])
def test_rounding_writes_a_packed_checkpoint_close_to_the_weights(bits, group_size, options, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path / "out", "--bits", bits, "--group_size", group_size, *options)
    config = read_config(tmp_path / "out")
    stored, original = load_folder(tmp_path / "out"), load_folder(tiny_checkpoint)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in hf_to_ms(config).items()}
    assert config["quantization"]["quant_method"] == "rtn"
    assert config["quantization"]["sym"] is ("--asym" not in options)
    for name, weight in weights_of(tmp_path / "out").items():
        step = original[name].abs().max() * 2 / (2 ** bits - 1) if stored[name].dtype == torch.uint8 else 0
        assert (weight - original[name]).abs().max() <= 0.51 * step, name
    for name in ("lm_head.weight", "transformer.wte.embedding_weight"):
        assert (stored[name].dtype == torch.uint8) is ("--quantize_head" in options)
    assert not (tmp_path / "out.part").exists()


def test_gptq_keeps_the_logits_closer_than_rounding(tiny_checkpoint, text, tmp_path):
    ids, errors = torch.tensor([list(TEXT[200:200 + LENGTH].encode())]), {}
    expected = torch_model(tiny_checkpoint).logits(ids, {})
    for name, options, data in (("rtn", [], None), ("gptq", [], text), ("desc_act", ["--desc_act"], text)):
        folder = run(tiny_checkpoint, tmp_path / name, "--group_size", 16, *options, text=data)
        errors[name] = float((torch_model(folder).logits(ids, {}) - expected).square().mean())
    assert errors["gptq"] < 0.7 * errors["rtn"] and errors["desc_act"] < 0.7 * errors["rtn"]
    assert "transformer.layers.0.attention.wq.order" in load_folder(tmp_path / "desc_act")
    # q, k and v are one linear in Hugging Face's model, and keep one order.
    orders = [load_folder(tmp_path / "desc_act")[f"transformer.layers.0.attention.{part}.order"] for part in
              ("wq", "wk", "wv")]
    assert all(torch.equal(order, orders[0]) for order in orders)


def test_the_model_computes_with_what_was_written(tiny_checkpoint, text, tmp_path):
    import mindspore as ms

    from qwen_mindspore.generate.loop import QwenForCausalLM
    from qwen_mindspore.model.config import QwenConfig

    folder = run(tiny_checkpoint, tmp_path / "out", "--group_size", 32, "--desc_act", "--quantize_head",
                 "--quantize_embedding", text=text)
    ids = list(TEXT[:LENGTH].encode())
    model = QwenForCausalLM(QwenConfig.from_hf_config(folder, checkpoint_name_or_path=str(folder)))
    model.set_train(False)
    found = model(ms.Tensor([ids], ms.int32)).asnumpy()
    # The cpu kernels round inputs to 8 bits where the CPU multiplies those faster: hence so much.
    np.testing.assert_allclose(found, torch_model(folder).logits(torch.tensor([ids]), {}).numpy(), atol=0.1)


def test_later_layers_see_what_the_earlier_ones_give_when_quantized(tiny_checkpoint, text, tmp_path, monkeypatch):
    """The hessian of each linear is that of its inputs in the model as it is quantized so far."""
    seen, gptq = [], quantize_layers.gptq
    monkeypatch.setattr(quantize_layers, "gptq", lambda weight, hessian, *others: (
        seen.append(hessian.clone()) or gptq(weight, hessian, *others)))
    folder = run(tiny_checkpoint, tmp_path / "out", "--group_size", 16, "--quantize_head", text=text)
    ids = torch.tensor(list(TEXT.encode())[:len(TEXT) // LENGTH * LENGTH]).view(-1, LENGTH)
    model = torch_model(folder)
    inputs, linear = [], model.linear

    def listening(name, x):
        # w2 has the inputs of w1.
        if not name.endswith("mlp.w2"):
            inputs.append(x.flatten(0, 1))
        return linear(name, x)

    monkeypatch.setattr(model, "linear", listening)
    model.logits(ids, {})
    assert len(inputs) == len(seen) == 3 * 4 + 1
    for hessian, x in zip(seen, inputs):
        torch.testing.assert_close(hessian, x.t() @ x / len(x), rtol=1e-3, atol=1e-4)


# From and to other formats

@pytest.mark.parametrize("kind", ["hf", "ckpt"])
def test_every_format_gives_the_same(kind, tiny_hf, tiny_checkpoint, tiny_ckpt, tmp_path):
    expected = files_of(run(tiny_checkpoint, tmp_path / "expected", "--group_size", 32))
    assert files_of(run({"hf": tiny_hf, "ckpt": tiny_ckpt}[kind], tmp_path / "out", "--group_size", 32)) == expected


def test_one_file_is_written_too(tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path / "folder")
    run(tiny_checkpoint, tmp_path / "one/qwen.safetensors")
    one, folder = load_file(tmp_path / "one/qwen.safetensors"), load_folder(tmp_path / "folder")
    assert one.keys() == folder.keys() and all(torch.equal(one[name], folder[name]) for name in one)
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        "config.json", "qwen.safetensors", "qwen.tiktoken"]


@pytest.mark.parametrize("options", [[], ["--desc_act"], ["--bits", 8, "--asym"]])
def test_a_gptq_folder_converts_to_the_same_packed_tensors(options, tiny_checkpoint, text, tmp_path):
    run(tiny_checkpoint, tmp_path / "ms", "--group_size", 8, *options, text=text)
    run(tiny_checkpoint, tmp_path / "hf", "--group_size", 8, "--format", "gptq", *options, text=text)
    settings = json.loads((tmp_path / "hf/quantize_config.json").read_text())
    assert settings["desc_act"] is ("--desc_act" in options) and settings["static_groups"] is not settings["desc_act"]
    convert_weight(tmp_path / "hf", tmp_path / "back")
    expected, found = load_folder(tmp_path / "ms"), load_folder(tmp_path / "back")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


# Interrupted

@pytest.fixture(scope="module")
def whole_run(tiny_checkpoint, text, tmp_path_factory):
    """A function: options -> the files of a run that nothing interrupted."""
    @functools.cache
    def files(*options):
        return files_of(run(tiny_checkpoint, tmp_path_factory.mktemp("whole") / "out", *options, text=text))

    return files


@pytest.mark.parametrize("options", [["--quantize_head", "--quantize_embedding"], ["--desc_act"]])
@pytest.mark.parametrize("moment", range(8))
def test_an_interrupted_run_goes_on_and_gives_the_same_files(moment, options, tiny_checkpoint, text, whole_run,
                                                             tmp_path, monkeypatch):
    options = ["--group_size", 16, *options]
    expected = whole_run(*options)
    replace, moments = os.replace, []

    def interrupted(source, target):
        """Files get their final names one after the other: stop before one of them."""
        if len(moments) == moment:
            raise KeyboardInterrupt
        moments.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        replace_operation(patch, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, tmp_path / "out", *options, text=text)
    assert not (tmp_path / "out").exists()
    calls, gptq = [], quantize_layers.gptq
    monkeypatch.setattr(quantize_layers, "gptq", lambda *args: calls.append(args) or gptq(*args))
    assert files_of(run(tiny_checkpoint, tmp_path / "out", *options, text=text)) == expected
    # What was finished, inputs of the next layer included, is not computed again.
    finished = sum("hidden" in str(target) for target in moments) - 1
    assert len(calls) == 4 * (3 - max(finished, 0)) + ("--quantize_head" in options)


def test_rounding_goes_on_too(tiny_checkpoint, tmp_path, monkeypatch):
    expected = files_of(run(tiny_checkpoint, tmp_path / "whole"))
    round_to_nearest, calls = quantize_layers.round_to_nearest, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return round_to_nearest(*args)

    monkeypatch.setattr(quantize_layers, "round_to_nearest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, tmp_path / "out")
    assert files_of(run(tiny_checkpoint, tmp_path / "out")) == expected
    assert len(calls) == 7 + 10


@pytest.mark.process
def test_the_command_ends_at_a_signal_with_one_line_and_goes_on(tiny_checkpoint, text, tmp_path):
    script = str(ROOT / "scripts/quantize.py")
    options = ["--load_checkpoint", tiny_checkpoint, "--output", "out", "--data", text, "--length", LENGTH]
    stopping = ("import os, runpy, signal, sys\nfrom qwen_mindspore.quantize import layers as quantize_layers\n"
                "quantize_layers.Run.make_parts = lambda run: os.kill(os.getpid(), signal.SIGTERM)\n"
                "sys.argv = sys.argv[1:]\n"
                "runpy.run_path(sys.argv[0], run_name='__main__')")
    stopped, finished = (
        subprocess.run([sys.executable, *how, script, *map(str, options)], cwd=tmp_path, capture_output=True, text=True,
                       check=False) for how in (["-c", stopping], []))
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert stopped.stderr.splitlines()[-1].startswith("quantize: interrupted; the same command resumes")
    assert (finished.returncode, finished.stdout) == (0, "out\n"), finished.stderr
    assert "100%" in finished.stderr and (tmp_path / "out/config.json").exists()


def test_parts_made_otherwise_are_not_reused(tiny_checkpoint, tmp_path):
    with working_folder(tmp_path / "out.part", {"bits": 4}):
        pass
    with pytest.raises(ValueError, match="out.part has parts made with another version, bits.*remove it"):
        run(tiny_checkpoint, tmp_path / "out", "--bits", 8)


def test_two_processes_do_not_share_a_folder(tiny_checkpoint, tmp_path):
    with working_folder(tmp_path / "out.part", {}), pytest.raises(OSError, match="another process is quantizing"):
        run(tiny_checkpoint, tmp_path / "out")


# What is refused

@pytest.mark.parametrize("options, message", [
    ("", "give --data FILE"),
    ("--bits 3", "invalid choice"),
    ("--method rtn --group_size 0", "--group_size: expected a positive number or -1"),
    ("--method rtn --data x", "--data goes with --method gptq"),
    ("--method rtn --desc_act", "--desc_act goes with --method gptq"),
    ("--data x --damp 0", "--damp: expected a number between 0 and 1"),
    ("--data x --length 0", "expected a positive number"),
    ("--method rtn --format gptq --quantize_embedding", "no place for it"),
    ("--method rtn --format gptq --output x.ckpt", "writes a folder"),
])
def test_options_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(["--load_checkpoint", "x", "--output", "out", *options.split()])
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--length", 65], "--length 65: the model was trained with 64 tokens"),
    (["--data", "SHORT"], "12 tokens, less than a piece of 32"),
    (["--format", "gptq", "--group_size", 48], "has 64 inputs, no multiple of --group_size 48"),
])
def test_what_the_model_can_not_have_is_refused_before_anything_is_written(options, message, tiny_checkpoint, text,
                                                                          tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("twelve bytes")
    options = [short if option == "SHORT" else option for option in options]
    with pytest.raises(ValueError, match=message):
        run(tiny_checkpoint, tmp_path / "out", *options, text=text)
    assert [file.name for file in tmp_path.iterdir()] == ["short.txt"]


def test_the_source_must_be_there_whole_and_not_quantized(tiny_checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        run(tmp_path / "nowhere", tmp_path / "out")
    run(tiny_checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="quantized already"):
        run(tmp_path / "out", tmp_path / "again")


def test_an_older_checkpoint_is_only_replaced_on_demand(tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists"):
        run(tiny_checkpoint, tmp_path / "out", "--bits", 8)
    assert read_config(tmp_path / "out")["quantization"]["bits"] == 4
    run(tiny_checkpoint, tmp_path / "out", "--bits", 8, "--overwrite")
    assert read_config(tmp_path / "out")["quantization"]["bits"] == 8


def test_autogptqs_loaders_want_whole_groups_of_quantized_linears(tiny_hf):
    config = read_config(tiny_hf)
    check_gptq_shapes(config, Quantization(4, 8))
    check_gptq_shapes(config, Quantization(4, -1))
    with pytest.raises(ValueError, match="feed_forward.w2 has 88 inputs"):
        check_gptq_shapes(config, Quantization(4, 16))
