"""
Quantized linears in the model, against AutoGPTQ's own outputs (tests/data/gptq_*), and against plain torch with the
weights that random packs stand for. All compute in float32; 1e-4 is ten times the rounding seen.
"""
import itertools
import json

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops
from safetensors.torch import load_file, save_file

from helpers import DATA, reference_qwen
from helpers.gptq import CONFIG, NAMES, random_model, settings, write_gptq_folder
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.packing import dequantize, pack
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.kernels import runnable_kernels
from qwen_mindspore.kernels.weights import Kind
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.linear import Embedding, Linear, QuantEmbedding, QuantLinear

TOLERANCE = 1e-4
IDS = list(range(3, 50, 2))
KINDS = {
    "as released": {},
    "8 bits, desc_act, asymmetric": {"bits": 8, "desc_act": True, "sym": False, "group_size": 16},
    "desc_act, a last group that is not full": {"group_size": 40, "desc_act": True, "sym": False},
    "one group": {"group_size": -1, "sym": False},
    "second version, small groups": {"checkpoint_format": "gptq_v2", "group_size": 8, "sym": False},
    "not all of them": {"names": NAMES[:3]},
}


@pytest.fixture(params=runnable_kernels())
def each_set(request, monkeypatch):
    monkeypatch.setenv("QWEN_KERNELS", request.param)


def build(checkpoint, **overrides):
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    config = QwenConfig.from_hf_config(folder, checkpoint_name_or_path=str(checkpoint), **overrides)
    model = QwenForCausalLM(config)
    model.set_train(False)
    return model


def converted(tmp_path, **kind):
    """(MindSpore folder, {Hugging Face name: float32 weight})."""
    tensors, weights = random_model(**kind)
    kind = {key: value for key, value in kind.items() if key not in ("dtype", "names")}
    write_gptq_folder(tmp_path / "hf", tensors, settings(**kind))
    return convert_weight(tmp_path / "hf", tmp_path / "ms"), weights


@pytest.mark.parametrize("name", ["gptq_int4", "gptq_int8"])
@pytest.mark.parametrize("output", ["ms", "ms/qwen.ckpt"])
def test_logits_are_autogptqs(each_set, tmp_path, name, output):
    expected = np.load(DATA / name / "expected.npz")
    model = build(convert_weight(DATA / name, tmp_path / output))
    actual = model(Tensor(expected["input_ids"])).asnumpy()
    np.testing.assert_allclose(actual, expected["logits"], atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_the_weights_that_a_pack_stands_for(each_set, tmp_path, kind):
    folder, weights = converted(tmp_path, **kind)
    expected = reference_qwen.forward(CONFIG, weights, IDS).numpy()
    actual = build(folder)(Tensor([IDS], ms.int32)).asnumpy()[0]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max())


def test_a_cache_changes_nothing(each_set, tmp_path):
    folder, weights = converted(tmp_path, desc_act=True, sym=False)
    model = build(folder, use_past=True, batch_size=2, seq_length=64)
    out = model.generate([IDS[:9], IDS], max_new_tokens=6, do_sample=False, eos_token_id=[])
    for prompt, ids in zip((IDS[:9], IDS), out):
        expected, _ = reference_qwen.greedy(CONFIG, weights, prompt, 6)
        assert ids[len(prompt):].tolist() == expected


def test_the_config_of_a_yaml_need_not_say_it(tmp_path):
    folder, _ = converted(tmp_path)
    by_file = QwenConfig.from_hf_config(folder, checkpoint_name_or_path=str(folder))
    silent = QwenConfig.from_hf_config(folder, checkpoint_name_or_path=str(folder))
    silent.quantization = None
    outputs = [QwenForCausalLM(config)(Tensor([IDS], ms.int32)).asnumpy() for config in (by_file, silent)]
    np.testing.assert_array_equal(*outputs)
    assert silent.quantization is None


def test_a_config_that_contradicts_the_checkpoint_is_refused(tmp_path):
    folder, _ = converted(tmp_path)
    with pytest.raises(ValueError, match="the config says .*'bits': 8.*config.json of .*'bits': 4.*: leave it out"):
        build(folder, quantization={"bits": 8, "group_size": 32})


def test_a_checkpoint_without_its_config_says_what_is_missing(tmp_path):
    folder, _ = converted(tmp_path)
    config = QwenConfig.from_hf_config(folder, checkpoint_name_or_path=str(folder))
    config.quantization = None
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="attention.wq.weight: expected .* by the config, found uint8: give the "
                                         "`quantization` of the checkpoint"):
        QwenForCausalLM(config)


def test_a_quantized_config_with_an_ordinary_checkpoint_is_refused(tmp_path):
    converted(tmp_path)
    plain = convert_weight(tmp_path / "hf", tmp_path / "plain", dequantize=True)
    with pytest.raises(ValueError, match="weights are missing, the first is transformer.layers.0.attention.wq.scales"):
        build(plain, quantization={"bits": 4, "group_size": 32})


def test_training_is_refused(tmp_path):
    folder, _ = converted(tmp_path)
    with pytest.raises(ValueError, match="a quantized model can't be trained: load the unquantized"):
        build(folder).set_train(True)


def test_mindformers_own_loading_checks_and_prepares(tmp_path):
    folder, _ = converted(tmp_path, desc_act=True)
    expected = build(folder)(Tensor([IDS], ms.int32)).asnumpy()
    path = convert_weight(tmp_path / "hf", tmp_path / "one" / "qwen.ckpt")
    model = QwenForCausalLM(QwenConfig.from_hf_config(path.parent))
    loaded = model.fuse_weight_from_ckpt(ms.load_checkpoint(str(path)))
    ms.load_param_into_net(model, loaded)
    np.testing.assert_array_equal(model(Tensor([IDS], ms.int32)).asnumpy(), expected)
    del loaded["transformer.layers.1.feed_forward.w2.zeros"]
    with pytest.raises(ValueError, match="1 of .* weights are missing.*feed_forward.w2.zeros"):
        model.fuse_weight_from_ckpt(loaded)


def test_packed_weights_and_halves_take_no_more_memory_than_on_disk(tmp_path):
    folder, _ = converted(tmp_path)
    model = build(folder)
    types = {parameter.name: parameter.dtype for parameter in model.get_parameters()}
    name = "transformer.layers.0.feed_forward.w1"
    assert (types[f"{name}.weight"], types[f"{name}.zeros"]) == (ms.uint8, ms.uint8)
    assert types["transformer.wte.embedding_weight"] == ms.float16, "as the released models' embedding"
    assert types["lm_head.weight"] == ms.float16


def test_every_weight_begins_at_a_cache_line_of_one_array(tmp_path):
    folder, _ = converted(tmp_path, desc_act=True)
    model = build(folder)
    places = sorted((parameter.asnumpy().ctypes.data, parameter.nbytes) for parameter in model.get_parameters())
    assert all(start % 64 == 0 for start, _ in places)
    gaps = [above - (start + size) for (start, size), (above, _) in itertools.pairwise(places)]
    assert all(0 <= gap < 64 for gap in gaps), "side by side"


def test_an_embedding_that_was_float32_stays_so(tmp_path):
    model = build(convert_weight(DATA / "gptq_int4", tmp_path / "ms"))
    assert model.transformer.wte.embedding_weight.dtype == ms.float32


def quantize_rows(weight, bits, group_size):
    """(weight, scales, zeros) of rounding to nearest, in numpy."""
    groups = weight.reshape(len(weight), -1, group_size)
    low, high = groups.min(-1), groups.max(-1)
    scales = ((high - low) / (2 ** bits - 1)).astype(np.float32)
    zeros = np.round(-low / scales).clip(0, 2 ** bits - 1).astype(np.uint8)
    levels = np.round(groups / scales[..., None] + zeros[..., None]).clip(0, 2 ** bits - 1).astype(np.uint8)
    return pack(levels.reshape(weight.shape), bits), scales, zeros


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding_and_head_may_be_quantized_too(each_set, tmp_path, bits):
    folder, weights = converted(tmp_path, bits=bits)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    for name, linear, hf_name in (("transformer.wte.embedding_weight", "transformer.wte", "transformer.wte.weight"),
                                  ("lm_head.weight", "lm_head", "lm_head.weight")):
        weight, scales, zeros = quantize_rows(weights[hf_name].numpy(), bits, 32)
        tensors |= {name: torch.from_numpy(weight), f"{linear}.scales": torch.from_numpy(scales),
                    f"{linear}.zeros": torch.from_numpy(zeros)}
        weights[hf_name] = torch.from_numpy(dequantize(weight, scales, zeros, bits, 32))
    save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= {"quantized": ["transformer.layers.*", "lm_head", "transformer.wte"], "sym": False}
    (folder / "config.json").write_text(json.dumps(config))

    expected = reference_qwen.forward(CONFIG, weights, IDS).numpy()
    model = build(folder)
    assert isinstance(model.transformer.wte, QuantEmbedding)
    actual = model(Tensor([IDS], ms.int32)).asnumpy()[0]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max())


def test_the_factory_builds_what_the_config_says():
    sizes = {"hidden_size": 64, "num_heads": 2, "num_layers": 2, "intermediate_size": 192, "vocab_size": 96,
             "seq_length": 32}
    plain = QwenForCausalLM(QwenConfig(**sizes))
    assert isinstance(plain.transformer.layers[0].attention.wq, Linear)
    assert isinstance(plain.transformer.wte, Embedding)
    some = QwenForCausalLM(QwenConfig(**sizes, quantization={
        "bits": 4, "group_size": 32, "quantized": ["transformer.layers.1.*.w2", "lm_head"]}))
    quantized = [name for name, cell in some.cells_and_names() if isinstance(cell, QuantLinear)]
    assert quantized == ["transformer.layers.1.feed_forward.w2", "lm_head"]
    assert [cell.weights().kind for cell in (some.lm_head, plain.lm_head)] == [Kind.INT4, Kind.FLOAT32]
    assert (ops.abs(some(Tensor([[1, 2, 3]], ms.int32))).max()) == 0, "without a checkpoint its weights are zeros"


@pytest.mark.parametrize("settings, said", [
    ({"quantization": {"bits": 5, "group_size": 128}}, "quantization: bits: expected 4 or 8, found 5"),
    ({"quantization": {"bits": 4, "group_size": 32, "quantized": ["lm_head"]}, "tie_word_embeddings": True},
     "an embedding that is the head as well"),
])
def test_a_config_that_cannot_be_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        QwenConfig(hidden_size=64, num_heads=2, **settings)
