"""AutoGPTQ's checkpoints there and back: what they stand for, bit for bit, and what is refused by name."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers import DATA, ROOT
from helpers import gptq as gptq_helpers
from helpers.checkpoints import load_folder, same_bits, save
from helpers.gptq import CONFIG, NAMES, W1, random_model, settings, write_gptq_folder
from qwen_mindspore.checkpoint import save as checkpoint_save
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.checkpoint.names import hf_to_ms
from qwen_mindspore.checkpoint.packing import dequantize

GOLDEN = [DATA / "gptq_int4", DATA / "gptq_int8"]
KINDS = {
    "as released": {},
    "8 bits": {"bits": 8},
    "asymmetric": {"sym": False},
    "8 bits, asymmetric": {"bits": 8, "sym": False},
    "desc_act": {"desc_act": True},
    "8 bits, desc_act, asymmetric": {"bits": 8, "desc_act": True, "sym": False, "group_size": 16},
    "one group": {"group_size": -1},
    "one group, desc_act": {"group_size": -1, "desc_act": True},
    "small groups": {"group_size": 8, "sym": False},
    "a last group that is not full": {"group_size": 40, "desc_act": True},
    "one group larger than the inputs": {"group_size": 128},
    "second version": {"checkpoint_format": "gptq_v2", "sym": False},
    "float32 scales": {"dtype": torch.float32},
}


def folder_of(tmp_path, **kind):
    """(AutoGPTQ's folder, its tensors, the float32 weights that it stands for)."""
    tensors, weights = random_model(**kind)
    kind = {key: value for key, value in kind.items() if key not in ("dtype", "names", "seed")}
    return write_gptq_folder(tmp_path / "hf", tensors, settings(**kind)), tensors, weights


def dequantized(folder):
    """{MindSpore name: float32 tensor}, every quantized linear's dequantized."""
    tensors = load_folder(folder)
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    for name in [name.removesuffix(".zeros") for name in tensors if name.endswith(".zeros")]:
        weight, scales, zeros, order = (
            tensors.pop(f"{name}.{kind}", torch.empty(0)) for kind in ("weight", "scales", "zeros", "order"))
        values = dequantize(weight.numpy(), scales.float().numpy(), zeros.numpy(), quantization["bits"],
                            quantization["group_size"], order.numpy() if order.numel() else None)
        tensors[f"{name}.weight"] = torch.from_numpy(values)
    return {name: tensor.float() for name, tensor in tensors.items()}


def expected(weights, config=CONFIG):
    """{MindSpore name: tensor} by the table."""
    return {name: torch.cat([weights[piece.name][piece.first:piece.last] for piece in tensor.pieces])
            for name, tensor in hf_to_ms(config).items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert same_bits(tensor, right[name]), name


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_autogptqs_own_weights_are_met_exactly(tmp_path, golden):
    convert_weight(golden, tmp_path / "ms")
    convert_weight(golden, tmp_path / "float16", dequantize=True)

    ours, rounded = dequantized(tmp_path / "ms"), load_folder(tmp_path / "float16")
    theirs = np.load(golden / "expected.npz")
    table = {"attn.c_attn": ("attention.wq", "attention.wk", "attention.wv"), "attn.c_proj": ("attention.wo",),
             "mlp.w1": ("feed_forward.w1",), "mlp.w2": ("feed_forward.w3",)}
    for name, parts in table.items():
        names = [f"transformer.layers.0.{part}.weight" for part in parts]
        weight = torch.cat([ours[name] for name in names]).numpy()
        np.testing.assert_array_equal(torch.cat([rounded[name] for name in names]).numpy(), weight.astype(np.float16))
        # The file holds the layer's outputs less its bias, and so their float32 rounding.
        bias = np.concatenate([ours.get(f"{name.removesuffix('weight')}bias", np.zeros(1)) for name in names])
        with_bias = weight + bias.astype(np.float32)[:, None]
        expected_weight = theirs[f"w:transformer.h.0.{name}"].T
        np.testing.assert_array_equal((with_bias - bias.astype(np.float32)[:, None]).astype(np.float16),
                                      expected_weight)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_converted_stands_for_the_same_weights(tmp_path, kind):
    folder, _, weights = folder_of(tmp_path, **kind)

    convert_weight(folder, tmp_path / "ms")

    assert_same(dequantized(tmp_path / "ms"), expected(weights))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_dequantizing_gives_an_ordinary_checkpoint(tmp_path, kind):
    folder, _, weights = folder_of(tmp_path, **kind)

    convert_weight(folder, tmp_path / "ms", dequantize=True)
    convert_weight(folder, tmp_path / "float32", dequantize=True, dtype="float32")

    half = {name: weight.half() for name, weight in expected(weights).items()}
    assert_same(load_folder(tmp_path / "ms"), half)
    assert_same(load_folder(tmp_path / "float32"), expected(weights))
    config = json.loads((tmp_path / "ms/config.json").read_text())
    assert "quantization" not in config and "quantization_config" not in config


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("middle", ["ms", "ms/qwen.ckpt"])
def test_there_and_back_is_bit_exact(tmp_path, monkeypatch, middle, kind):
    monkeypatch.setattr(checkpoint_save, "CHUNK_BYTES", 1000)
    folder, tensors, _ = folder_of(tmp_path, **kind)

    convert_weight(folder, tmp_path / middle)
    convert_reversed(tmp_path / middle, tmp_path / "back")

    assert_same(load_folder(tmp_path / "back"), tensors)
    written = json.loads((tmp_path / "back/quantize_config.json").read_text())
    # Of one group no input is out of its place.
    assert written == {**json.loads((folder / "quantize_config.json").read_text()),
                       "desc_act": kind.get("desc_act", False) and kind.get("group_size") != -1}
    assert json.loads((tmp_path / "back/config.json").read_text()) == {**CONFIG, "quantization_config": written}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_autogptqs_own_files_survive_the_round_trip(tmp_path, golden):
    convert_weight(golden, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")

    assert_same(load_folder(tmp_path / "back"), load_folder(golden))


def test_the_config_says_how_it_is_packed(tmp_path):
    folder, _, _ = folder_of(tmp_path)
    convert_weight(folder, tmp_path / "ms")

    config = json.loads((tmp_path / "ms/config.json").read_text())
    assert config.pop("quantization").items() >= {
        "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "quant_method": "gptq"}.items()
    assert config == CONFIG
    tensors = load_folder(tmp_path / "ms")
    name = "transformer.layers.1.feed_forward.w2"
    assert {kind: (str(tensors[f"{name}.{kind}"].dtype), tuple(tensors[f"{name}.{kind}"].shape))
            for kind in ("weight", "scales", "zeros")} == {
        "weight": ("torch.uint8", (64, 48)), "scales": ("torch.float16", (64, 3)), "zeros": ("torch.uint8", (64, 3))}
    assert f"{name}.order" not in tensors and f"{name}.bias" not in tensors


def test_desc_act_without_an_effect_leaves_no_order(tmp_path):
    """AutoGPTQ's static_groups: desc_act is on, and the groups are contiguous nevertheless."""
    tensors, weights = random_model()
    folder = write_gptq_folder(tmp_path / "hf", tensors, settings(desc_act=True, static_groups=True))

    convert_weight(folder, tmp_path / "ms")

    assert json.loads((tmp_path / "ms/config.json").read_text())["quantization"]["desc_act"] is False
    assert_same(dequantized(tmp_path / "ms"), expected(weights))


def test_a_model_is_symmetric_only_if_its_zeros_are(tmp_path):
    tensors, weights = random_model(sym=False)
    convert_weight(write_gptq_folder(tmp_path / "hf", tensors, settings(sym=True)), tmp_path / "ms")

    assert json.loads((tmp_path / "ms/config.json").read_text())["quantization"]["sym"] is False
    assert_same(dequantized(tmp_path / "ms"), expected(weights))


def test_one_reordered_linear_gives_all_an_order(tmp_path):
    tensors, weights = random_model(desc_act=True)
    plain, plain_weights = random_model()
    for name in NAMES[1:]:
        tensors |= {key: value for key, value in plain.items() if key.startswith(f"{name}.")}
        weights |= {key: value for key, value in plain_weights.items() if key.startswith(f"{name}.")}
    convert_weight(write_gptq_folder(tmp_path / "hf", tensors, settings(desc_act=True)), tmp_path / "ms")

    order = load_folder(tmp_path / "ms")["transformer.layers.0.feed_forward.w1.order"]
    assert torch.equal(order, torch.arange(64, dtype=torch.int32))
    assert_same(dequantized(tmp_path / "ms"), expected(weights))


def test_group_indices_may_be_missing_where_none_is_reordered(tmp_path):
    tensors, weights = random_model()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}
    convert_weight(write_gptq_folder(tmp_path / "hf", tensors, settings()), tmp_path / "ms")

    assert_same(dequantized(tmp_path / "ms"), expected(weights))


@pytest.mark.parametrize("where", [{"beside": False}, {"inside": False}])
def test_either_config_is_enough(tmp_path, where):
    tensors, weights = random_model()
    convert_weight(write_gptq_folder(tmp_path / "hf", tensors, settings(), **where), tmp_path / "ms")

    assert_same(dequantized(tmp_path / "ms"), expected(weights))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_autogptqs_default_file_name_is_found(tmp_path, suffix):
    folder, tensors, weights = folder_of(tmp_path)
    (folder / "model.safetensors").unlink()
    save(folder / f"gptq_model-4bit-32g{suffix}", tensors)
    convert_weight(folder, tmp_path / "ms")

    assert_same(dequantized(tmp_path / "ms"), expected(weights))


def test_linears_that_were_left_alone_stay_so(tmp_path):
    """The attention's in both layers and one of the feed-forward's in one."""
    quantized = [name for name in NAMES if ".attn." in name] + [W1]
    tensors, weights = random_model(names=quantized)
    folder = write_gptq_folder(tmp_path / "hf", tensors, settings())
    convert_weight(folder, tmp_path / "ms")

    quantization = json.loads((tmp_path / "ms/config.json").read_text())["quantization"]
    assert quantization["quantized"] == ["transformer.layers.*.attention.wk", "transformer.layers.*.attention.wo",
                                         "transformer.layers.*.attention.wq", "transformer.layers.*.attention.wv",
                                         "transformer.layers.0.feed_forward.w1"]
    assert_same(dequantized(tmp_path / "ms"), expected(weights))


def test_a_quantized_head_goes_there_and_back(tmp_path):
    tensors, weights = random_model()
    packed, weight = gptq_helpers.random_linear(np.random.default_rng(5), 96, 64, 4, 32, False, True)
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head.{kind}": value for kind, value in packed.items()} | {"lm_head.bias": torch.zeros(96).half()}
    weights["lm_head.weight"] = torch.tensor(weight)
    folder = write_gptq_folder(tmp_path / "hf", tensors, settings(lm_head=True))

    convert_weight(folder, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")

    quantization = json.loads((tmp_path / "ms/config.json").read_text())["quantization"]
    assert quantization["quantized"] == ["transformer.layers.*", "lm_head"]
    assert_same(dequantized(tmp_path / "ms"), expected(weights))
    assert_same(load_folder(tmp_path / "back"), tensors)


def test_another_type_is_not_that_of_scales(tmp_path):
    folder, tensors, _ = folder_of(tmp_path)
    convert_weight(folder, tmp_path / "ms", dtype="bfloat16")

    written = load_folder(tmp_path / "ms")
    assert written["lm_head.weight"].dtype == torch.bfloat16
    assert same_bits(written["transformer.layers.0.feed_forward.w1.scales"],
                     tensors[f"{W1}.scales"].t().contiguous())
    assert json.loads((tmp_path / "ms/config.json").read_text())["bf16"] is True


def without(kind):
    tensors, _ = random_model()
    del tensors[f"{W1}.{kind}"]
    return tensors


def changed(kind, value):
    tensors, _ = random_model()
    return {**tensors, f"{W1}.{kind}": value(tensors[f"{W1}.{kind}"])}


CORRUPT = {
    "no scales": (without("scales"), rf"{W1}.scales is missing: fetch"),
    "no zeros": (without("qzeros"), rf"{W1}.qzeros is missing: fetch"),
    "no weights": (without("qweight"), rf"{W1}.qweight is missing: fetch"),
    "a norm missing": ({name: value for name, value in random_model()[0].items() if name != "transformer.ln_f.weight"},
                       r"transformer.ln_f.weight is missing \(1 of"),
    "bits of another model": (random_model(bits=8)[0], r"h.0.attn.c_attn.qweight has shape \[16, 192\], expected .* "
                                                       "by 4 bits, which the config says; these are 8 bits"),
    "3 bits": (changed("qweight", lambda x: x[:6]), rf"{W1}.qweight has shape \[6, 96\].*; these are 3 bits"),
    "weights cut off": (changed("qweight", lambda x: x[:, :88]),
                        rf"{W1}.qweight has shape \[8, 88\], expected \[8, 96\] by config.json, 4 bits and group_size"),
    "other groups": (random_model(group_size=16)[0],
                     r"c_attn.qzeros has shape \[4, 24\], expected \[2, 24\] by .*group_size 32"),
    "scales cut off": (changed("scales", lambda x: x[:1]), rf"{W1}.scales has shape \[1, 96\], expected \[2, 96\]"),
    "integer scales": (changed("scales", lambda x: x.int()), rf"{W1}.scales has type int32, expected float32, "),
    "float zeros": (changed("qzeros", lambda x: x.float()), rf"{W1}.qzeros has type float32, expected int32"),
    "a scale that is none": (changed("scales", lambda x: x * torch.nan), r"w1.scales has values that are not finite"),
    "group too large": (changed("g_idx", lambda x: x + 1), rf"{W1}.g_idx has groups from 1 to 2, expected 0 to 1"),
    "group negative": (changed("g_idx", lambda x: x - 1), rf"{W1}.g_idx has groups from -1 to 0, expected 0 to 1"),
    "unequal groups": (changed("g_idx", lambda x: torch.clamp(x + (torch.arange(64) == 3), 0, 1).int()),
                       rf"{W1}.g_idx has 31 inputs in group 0, expected 32 by group_size 32"),
    "group indices cut off": (changed("g_idx", lambda x: x[:63]), rf"{W1}.g_idx has shape \[63\], expected \[64\]"),
    "a bias": (changed("bias", lambda x: x + 0.5), rf"{W1}.bias is not zero, but a Qwen has no bias there"),
    "both kinds of weight": ({**random_model()[0], f"{W1}.weight": torch.zeros(96, 64)},
                             rf"both {W1}.weight and {W1}.qweight are there"),
    "a stranger": ({**random_model()[0], "transformer.visual.proj": torch.ones(1)}, "visual.proj is not a tensor of"),
    "nothing quantized": (random_model(names=())[0], "no tensor is quantized, though the config says so"),
}


@pytest.mark.parametrize(("tensors", "message"), CORRUPT.values(), ids=CORRUPT)
def test_a_corrupted_pack_is_refused_by_name_and_leaves_nothing(tmp_path, tensors, message):
    folder = write_gptq_folder(tmp_path / "hf", tensors, settings())

    with pytest.raises(ValueError, match=message):
        convert_weight(folder, tmp_path / "ms")
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


REFUSED = {
    "2 bits": ({"bits": 2}, "quantization: bits: expected 4 or 8, found 2"),
    "3 bits": ({"bits": 3}, "quantization: bits: expected 4 or 8, found 3"),
    "no group": ({"group_size": 0}, "quantization: group_size: expected a positive whole number, or -1"),
    "another method": ({"quant_method": "awq"}, "quantized by 'awq', expected 'gptq'"),
    "another format": ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', expected gptq or gptq_v2"),
    "marlin": ({"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
    "each module its own": ({"dynamic": {"mlp": {"bits": 8}}}, "quantized with `dynamic`"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_refused(tmp_path, change, message):
    folder = write_gptq_folder(tmp_path / "hf", random_model()[0], settings(**change))

    with pytest.raises(ValueError, match=f"hf: {message}"):
        convert_weight(folder, tmp_path / "ms")


def test_group_indices_are_needed_where_desc_act_is_on(tmp_path):
    tensors, _ = random_model(desc_act=True)
    tensors = {name: tensor for name, tensor in tensors.items() if name != f"{W1}.g_idx"}

    with pytest.raises(ValueError, match=f"{W1}.g_idx is missing, which desc_act needs"):
        convert_weight(write_gptq_folder(tmp_path / "hf", tensors, settings(desc_act=True)), tmp_path / "ms")


def test_two_configs_that_contradict_each_other_are_refused(tmp_path):
    folder, _, _ = folder_of(tmp_path)
    (folder / "quantize_config.json").write_text(json.dumps(settings(bits=8)))

    with pytest.raises(ValueError, match="quantize_config.json: bits is 8, in config.json it is 4"):
        convert_weight(folder, tmp_path / "ms")


def test_quantized_tensors_need_a_config(tmp_path):
    tensors, _ = random_model()

    with pytest.raises(ValueError, match="qweight is quantized, but neither quantize_config.json nor config.json"):
        convert_weight(write_gptq_folder(tmp_path / "hf", tensors, {}, beside=False, inside=False), tmp_path / "ms")


def test_there_is_nothing_to_dequantize_in_an_ordinary_model(tmp_path, tiny_hf):
    with pytest.raises(ValueError, match="nothing to dequantize, the model is not quantized"):
        convert_weight(tiny_hf, tmp_path / "ms", dequantize=True)


def rewrite(folder, change, **quantization):
    """Change a converted checkpoint's tensors, and its config."""
    tensors = load_folder(folder)
    change(tensors)
    for file in folder.glob("model*"):
        file.unlink()
    save(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= quantization
    (folder / "config.json").write_text(json.dumps(config))


def test_what_autogptq_has_no_place_for_is_refused(tmp_path):
    folder, _, _ = folder_of(tmp_path, desc_act=True)
    convert_weight(folder, tmp_path / "ms")
    name = "transformer.layers.1.attention.wk"

    def other_order(tensors):
        tensors[f"{name}.order"] = tensors[f"{name}.order"].flip(0).contiguous()

    rewrite(tmp_path / "ms", other_order)
    with pytest.raises(ValueError, match=f"{name}.order is not that of transformer.layers.1.attention.wq"):
        convert_reversed(tmp_path / "ms", tmp_path / "back")

    def no_order(tensors):
        tensors[f"{name}.order"] = torch.zeros(64, dtype=torch.int32)

    rewrite(tmp_path / "ms", no_order)
    with pytest.raises(ValueError, match=f"{name}.order is not an order of 64 inputs"):
        convert_reversed(tmp_path / "ms", tmp_path / "back")

    def float_key(tensors):
        tensors[f"{name}.weight"] = torch.zeros(64, 64)

    patterns = [f"transformer.layers.{layer}.{linear}" for layer in (0, 1) for linear in (
        "attention.w[qkvo]", "feed_forward.*") if layer == 0 or linear != "attention.w[qkvo]"]
    rewrite(tmp_path / "ms", float_key, quantized=[*patterns, "transformer.layers.1.attention.w[qvo]"])
    with pytest.raises(ValueError, match="only some of .*wq, .*wk, .*wv are quantized, which are one"):
        convert_reversed(tmp_path / "ms", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_quantized_embedding_has_no_place_in_autogptqs_format(tmp_path):
    folder, _, _ = folder_of(tmp_path)
    convert_weight(folder, tmp_path / "ms")

    def quantize_embedding(tensors):
        tensors["transformer.wte.embedding_weight"] = torch.zeros(96, 32, dtype=torch.uint8)
        tensors["transformer.wte.scales"] = torch.ones(96, 2)
        tensors["transformer.wte.zeros"] = torch.zeros(96, 2, dtype=torch.uint8)

    rewrite(tmp_path / "ms", quantize_embedding, quantized=["transformer.layers.*", "transformer.wte"])
    with pytest.raises(ValueError, match="the embedding is quantized, for which AutoGPTQ has no format"):
        convert_reversed(tmp_path / "ms", tmp_path / "back")


@pytest.mark.process
def test_the_commands_go_there_and_back(tmp_path):
    folder, _, _ = folder_of(tmp_path)
    scripts = ROOT / "convert"
    for script, options in (("convert_weight.py", ["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "ms"]),
                            ("convert_reversed.py", ["--mindspore_ckpt_path", "ms", "--torch_ckpt_path", "back"]),
                            ("convert_weight.py", ["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "plain.ckpt",
                                                   "--dequantize"])):
        run = subprocess.run([sys.executable, str(scripts / script), *options], cwd=tmp_path, capture_output=True,
                             text=True, check=False)
        assert (run.returncode, run.stdout) == (0, f"{options[3]}\n"), run.stderr
    assert_same(load_folder(tmp_path / "back"), load_folder(folder))
    assert (tmp_path / "plain.ckpt").is_file()
