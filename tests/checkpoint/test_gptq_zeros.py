"""How zeros are stored, less one or as they are: what they say themselves counts for more than what a config does."""
import json

import numpy as np
import pytest
import torch

from helpers.checkpoints import load_folder
from helpers.gptq import NAMES, W1, random_model, settings, words, write_gptq_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight

HALF, LESS = {4: 0x88888888, 8: 0x80808080}, {4: 0x77777777, 8: 0x7F7F7F7F}


def all_zeros(tensors, word):
    """The tensors with every word of every qzeros replaced."""
    word = int(np.uint32(word).view(np.int32))
    return {name: torch.full_like(tensor, word) if name.endswith("qzeros") else tensor
            for name, tensor in tensors.items()}


def convert(tmp_path, tensors, quantize_config, **where):
    """(the dequantized weights, the config.json) of what a folder is converted to."""
    folder = write_gptq_folder(tmp_path / "hf", tensors, quantize_config, **where)
    convert_weight(folder, tmp_path / "ms")
    convert_weight(folder, tmp_path / "plain", dtype="float32", dequantize=True)
    return load_folder(tmp_path / "plain"), json.loads((tmp_path / "ms/config.json").read_text())["quantization"]


def assert_right(plain, weights):
    name = "transformer.layers.0.feed_forward.w1.weight"
    assert torch.equal(plain[name], weights[f"{W1}.weight"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stored, declared, form", [
    (HALF, {}, "gptq_v2"),
    (HALF, {"checkpoint_format": "gptq"}, "gptq_v2"),
    (HALF, {"format": "gptq"}, "gptq_v2"),
    (HALF, {"checkpoint_format": "gptq_v2"}, "gptq_v2"),
    (HALF, {"format": "gptq_v2"}, "gptq_v2"),
    (HALF, {"format": "GPTQ_V2", "checkpoint_format": "gptq_v2"}, "gptq_v2"),
    (LESS, {}, None),
    (LESS, {"checkpoint_format": None}, None),
    (LESS, {"format": "gptq"}, "gptq"),
    (LESS, {"checkpoint_format": "gptq_v2"}, "gptq"),
    (LESS, {"format": "gptq_v2"}, "gptq"),
])
@pytest.mark.parametrize("where", [{}, {"inside": False}, {"beside": False}], ids=["both", "beside", "inside"])
def test_with_sym_the_zeros_say_how_they_are_stored(tmp_path, capsys, bits, stored, declared, form, where):
    tensors, weights = random_model(bits=bits)

    plain, quantization = convert(tmp_path, all_zeros(tensors, stored[bits]), settings(bits=bits, **declared), **where)

    assert_right(plain, weights)
    assert quantization.get("checkpoint_format") == form
    assert quantization["sym"] is True and "format" not in quantization
    said = "qzeros is all" in capsys.readouterr().err
    assert said == ((stored is HALF) != ("gptq_v2" in str(declared).lower()))


@pytest.mark.parametrize("stored, declared", [(HALF, {}), (LESS, {"format": "gptq_v2"}), (HALF, {"format": "gptq_v2"})])
def test_the_way_back_declares_what_it_writes(tmp_path, stored, declared):
    tensors = all_zeros(random_model()[0], stored[4])
    convert(tmp_path, tensors, settings(**declared))

    convert_reversed(tmp_path / "ms", tmp_path / "back")

    written = json.loads((tmp_path / "back/quantize_config.json").read_text())
    assert (written["checkpoint_format"] == "gptq_v2") == (stored is HALF)
    back = load_folder(tmp_path / "back")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_what_is_said_names_the_zeros_and_both_formats(tmp_path, capsys):
    folder = write_gptq_folder(tmp_path / "hf", all_zeros(random_model()[0], HALF[4]), settings())
    convert_weight(folder, tmp_path / "ms")
    assert (f'checkpoint: {folder}/model.safetensors: qzeros is all 8, which with "sym": true means gptq_v2, and is '
            "read so, though the config says nothing\n") in capsys.readouterr().err


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("linears", [NAMES[:1], NAMES[1:]])
def test_zeros_of_both_kinds_are_refused(tmp_path, bits, linears):
    tensors, _ = random_model(bits=bits)
    other = all_zeros(tensors, HALF[bits])
    tensors |= {f"{name}.qzeros": other[f"{name}.qzeros"] for name in linears}
    half = 2 ** (bits - 1)
    with pytest.raises(ValueError, match=f"safetensors: qzeros holds both {half - 1} and {half}: with .sym.: true"):
        convert(tmp_path, tensors, settings(bits=bits))
    assert not (tmp_path / "ms").exists()


def test_without_sym_zeros_of_both_kinds_are_what_is_declared(tmp_path):
    tensors, weights = random_model()
    tensors[f"{NAMES[-1]}.qzeros"] = all_zeros(tensors, HALF[4])[f"{NAMES[-1]}.qzeros"]
    plain, quantization = convert(tmp_path, tensors, settings(sym=False))
    assert_right(plain, weights)
    assert quantization["sym"] is False


def test_other_zeros_with_sym_are_read_as_declared_and_said(tmp_path, capsys):
    tensors, weights = random_model(sym=False, checkpoint_format="gptq_v2")
    plain, quantization = convert(tmp_path, tensors, settings(sym=True, format="gptq_v2"))
    assert_right(plain, weights)
    assert (quantization["sym"], quantization["checkpoint_format"]) == (False, "gptq_v2")
    assert 'the config says "sym": true, but qzeros has other levels than 8' in capsys.readouterr().err


@pytest.mark.parametrize("key", ["format", "checkpoint_format"])
def test_without_sym_the_declared_format_counts_under_either_name(tmp_path, key):
    tensors, weights = random_model(sym=False, checkpoint_format="gptq_v2")
    plain, quantization = convert(tmp_path, tensors, settings(sym=False, **{key: "gptq_v2"}))
    assert_right(plain, weights)
    assert quantization["checkpoint_format"] == "gptq_v2"


def trained_model(bits, is_v2):
    """Tensors of a quantized model whose zeros, one for each group, belong to its weights, which are 0 on average."""
    random = np.random.default_rng(0)
    tensors, _ = random_model(bits=bits, group_size=-1, sym=False)
    for name in NAMES:
        rows, outputs = tensors[f"{name}.qweight"].shape
        inputs, highest = rows * 32 // bits, 2 ** bits - 1
        values = random.normal(random.normal(0, 0.1, (1, outputs)), 1, (inputs, outputs))
        lowest = np.minimum(values.min(0), 0)
        scales = (np.maximum(values.max(0), 0) - lowest) / highest
        zeros = np.round(-lowest / scales).astype(int)
        levels = np.clip(np.round(values / scales) + zeros, 0, highest).astype(int)
        tensors[f"{name}.qweight"] = words(levels.T, bits).T.contiguous()
        tensors[f"{name}.qzeros"] = words((zeros - (not is_v2))[None] % (highest + 1), bits)
    return tensors


@pytest.mark.parametrize("is_v2", [False, True])
def test_without_sym_and_without_a_format_the_weights_may_tell(tmp_path, is_v2):
    tensors, quantize_config = trained_model(4, is_v2), settings(sym=False, group_size=-1)
    if not is_v2:
        assert "checkpoint_format" not in convert(tmp_path, tensors, quantize_config)[1]
        return
    with pytest.raises(ValueError, match=r"its levels are -?0.\d+ above qzeros on average, as in gptq_v2, .* the "
                                         r"config names no format, which means gptq: write the checkpoint_format"):
        convert(tmp_path, tensors, quantize_config)


@pytest.mark.parametrize("is_v2", [False, True])
@pytest.mark.parametrize("declared", ["gptq", "gptq_v2"])
def test_without_sym_a_declared_format_counts_and_a_doubt_is_said(tmp_path, capsys, is_v2, declared):
    tensors = trained_model(4, is_v2)
    quantization = convert(tmp_path, tensors, settings(sym=False, group_size=-1, checkpoint_format=declared))[1]
    assert quantization["checkpoint_format"] == declared
    assert ("as in gptq" in capsys.readouterr().err) == (is_v2 != (declared == "gptq_v2"))


@pytest.mark.parametrize("declared, message", [
    ({"format": "gptq_v2", "checkpoint_format": "gptq"}, "format is 'gptq_v2', checkpoint_format is 'gptq', which"),
    ({"format": "marlin"}, "checkpoint_format is 'marlin', expected gptq or gptq_v2"),
    ({"checkpoint_format": 2}, "checkpoint_format is 2, expected gptq or gptq_v2"),
    ({"format": ["gptq"]}, r"checkpoint_format is \['gptq'\], expected gptq"),
])
def test_a_format_that_nobody_knows_or_that_contradicts_is_refused(tmp_path, declared, message):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, random_model()[0], settings(**declared))


@pytest.mark.parametrize("key, inside, beside", [
    ("bits", 4, 8), ("group_size", 32, 64), ("desc_act", False, True), ("sym", True, False),
    ("checkpoint_format", "gptq", "gptq_v2"), ("format", "gptq", "gptq_v2"), ("quant_method", "gptq", "awq"),
])
def test_two_configs_that_say_different_things_are_refused(tmp_path, key, inside, beside):
    folder = write_gptq_folder(tmp_path / "hf", random_model()[0], settings(**{key: inside}))
    (folder / "quantize_config.json").write_text(json.dumps(settings(**{key: beside})))
    name = "checkpoint_format" if key == "format" else key
    with pytest.raises(ValueError, match=f"config.json: {name} is {beside!r}, in config.json it is {inside!r}"):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("inside, beside", [
    ({"bits": 4.0}, {"bits": 4}), ({"group_size": 32}, {"group_size": 32.0}), ({"desc_act": "false"}, {}),
    ({"format": "gptq"}, {"checkpoint_format": "gptq"}), ({"desc_act": None}, {"desc_act": False}),
    ({"quant_method": "GPTQ"}, {})])
def test_two_ways_to_say_the_same_are_no_contradiction(tmp_path, inside, beside):
    tensors, weights = random_model()
    folder = write_gptq_folder(tmp_path / "hf", tensors, settings(**inside))
    (folder / "quantize_config.json").write_text(json.dumps(settings(**beside)))
    convert_weight(folder, tmp_path / "plain", dtype="float32", dequantize=True)
    assert_right(load_folder(tmp_path / "plain"), weights)


@pytest.mark.parametrize("change", [{"bits": 4.0}, {"group_size": 32.0}, {"bits": "4", "group_size": "32"},
                                    {"bits": " 4.0"}, {"desc_act": "no", "sym": "yes"}, {"desc_act": "False"},
                                    {"desc_act": None}, {"desc_act": 0}, {"sym": "true"}, {"sym": 1.0}, {"sym": None},
                                    {"is_marlin_format": "false"}, {"quant_method": None}, {"dynamic": None}])
def test_a_value_that_can_mean_one_thing_is_taken_for_it(tmp_path, change):
    tensors, weights = random_model()
    plain, quantization = convert(tmp_path, tensors, settings(**change))
    assert_right(plain, weights)
    assert (quantization["bits"], quantization["group_size"], quantization["desc_act"]) == (4, 32, False)
    assert type(quantization["bits"]) is type(quantization["group_size"]) is int


@pytest.mark.parametrize("change, message", [
    ({"bits": None}, "expected at least bits and group_size, found {'group_size': 32"),
    ({"bits": 4.5}, "bits: expected 4 or 8, found 4.5"), ({"bits": "0x4"}, "bits: expected 4 or 8, found '0x4'"),
    ({"bits": [4]}, r"bits: expected 4 or 8, found \[4\]"), ({"bits": True}, "bits: expected 4 or 8, found True"),
    ({"bits": float("inf")}, "bits: expected 4 or 8, found inf"),
    ({"group_size": None}, "expected at least bits and group_size"),
    ({"group_size": "12_8"}, "group_size: expected a positive whole number, or -1 for one group, found '12_8'"),
    ({"group_size": 12.8}, "group_size: .*found 12.8"), ({"group_size": -2}, "group_size: .*found -2"),
    ({"group_size": 10 ** 30}, "group_size: expected a positive whole number"),
    ({"desc_act": "maybe"}, "desc_act: expected true or false, found 'maybe'"),
    ({"desc_act": 2}, "desc_act: expected true or false, found 2"),
    ({"sym": "y"}, "sym: expected true or false, found 'y'"), ({"sym": []}, r"sym: .*found \[\]"),
    ({"is_marlin_format": "perhaps"}, "is_marlin_format: expected true or false, found 'perhaps'"),
    ({"quant_method": 3}, "quantized by 3, expected 'gptq'"), ({"quant_method": "awq"}, "quantized by 'awq'"),
    ({"quantized": "lm_head"}, "quantized: expected a list of names or patterns, found 'lm_head'"),
    ({"quantized": 7}, "quantized: expected a list"), ({"quantized": []}, "quantized: expected a list"),
])
@pytest.mark.parametrize("where", [{"inside": False}, {"beside": False}], ids=["beside", "inside"])
def test_a_value_that_can_mean_nothing_is_refused_by_name(tmp_path, change, message, where):
    folder = write_gptq_folder(tmp_path / "hf", random_model()[0], settings(**change), **where)
    with pytest.raises(ValueError, match=message) as error:
        convert_weight(folder, tmp_path / "ms")
    assert str(folder) in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("found", ["gptq", ["bits"], 4, True])
def test_a_quantization_config_that_is_no_object_is_refused(tmp_path, found):
    folder = write_gptq_folder(tmp_path / "hf", random_model()[0], found, beside=False)
    with pytest.raises(ValueError, match="config.json: quantization_config: expected an object of settings, found"):
        convert_weight(folder, tmp_path / "ms")
