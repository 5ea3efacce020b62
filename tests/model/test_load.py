"""Loading checkpoints: formats, types, and what is refused."""
import shutil

import mindspore as ms
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers import TINY
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.load import load_weights, prepare_weights


@pytest.fixture
def model():
    return QwenForCausalLM(QwenConfig.from_hf_config(TINY))


def weights(model):
    return {parameter.name: parameter.asnumpy().copy() for parameter in model.get_parameters()}


@pytest.fixture(scope="module")
def expected(build_tiny):
    return weights(build_tiny())


def assert_equal(actual, expected, rtol=0.0):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=1e-6 if rtol else 0, err_msg=name)


def test_every_format_gives_the_same_weights(model, expected, tiny_hf, tiny_ckpt, tiny_checkpoint, tmp_path):
    single = tmp_path / "one" / "qwen.safetensors"
    single.parent.mkdir()
    convert_weight(str(tiny_hf), str(single))
    for path in (tiny_ckpt, tiny_ckpt.parent, tiny_checkpoint, single):
        fresh = QwenForCausalLM(QwenConfig.from_hf_config(TINY))
        load_weights(fresh, str(path))
        assert_equal(weights(fresh), expected)


@pytest.mark.parametrize("dtype, rtol", [("float16", 1e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("name", ["qwen.ckpt", "folder"])
def test_16_bit_checkpoints_load_into_float32(model, expected, tiny_hf, tmp_path, dtype, rtol, name):
    convert_weight(str(tiny_hf), str(tmp_path / name), dtype=dtype)
    load_weights(model, str(tmp_path / name))
    assert_equal(weights(model), expected, rtol)


def saved(model, path, change):
    entries = {parameter.name: parameter for parameter in model.get_parameters()}
    change(entries)
    ms.save_checkpoint([{"name": name, "data": value} for name, value in entries.items()], str(path))
    return str(path)


def test_a_missing_weight_is_named(model, tmp_path):
    path = saved(model, tmp_path / "x.ckpt", lambda entries: entries.pop("transformer.ln_f.weight"))
    with pytest.raises(ValueError, match=r"x.ckpt: .*1 of \d+ weights are missing.*transformer.ln_f.weight"):
        load_weights(model, path)


def test_a_weight_of_another_shape_is_named(model, tmp_path):
    name = "transformer.layers.1.feed_forward.w1.weight"

    def widen(entries):
        entries[name] = ms.Parameter(ms.ops.zeros((176, 64)), name=name)

    with pytest.raises(ValueError, match=rf"{name}: expected \(88, 64\) by the config, found \(176, 64\)"):
        load_weights(model, saved(model, tmp_path / "x.ckpt", widen))


def test_a_hugging_face_file_is_told_to_be_converted(model):
    with pytest.raises(ValueError, match="convert it with convert/convert_weight.py"):
        load_weights(model, str(TINY))


def test_a_folder_that_lacks_a_shard_is_refused(model, tmp_path):
    half = list(weights(model))[::2]
    ms.save_checkpoint([{"name": name, "data": model.parameters_dict()[name]} for name in half],
                       str(tmp_path / "1"), format="safetensors")
    with pytest.raises(ValueError, match=r"\d+ of \d+ weights are missing"):
        load_weights(model, str(tmp_path))


def test_a_file_that_was_cut_short_is_refused(model, tiny_ckpt, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(tiny_ckpt.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"x.ckpt: damaged or incomplete"):
        load_weights(model, str(tmp_path / "x.ckpt"))


def test_optimizer_state_is_left_alone(model, expected, tmp_path):
    name = "adam_m.lm_head.weight"

    def add(entries):
        entries[name] = ms.Parameter(ms.ops.zeros((2, 2)), name=name)

    load_weights(model, saved(model, tmp_path / "x.ckpt", add))


def test_a_stray_file_does_not_replace_a_weight(model, expected, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "folder")
    ms.save_checkpoint([{"name": "lm_head.weight", "data": ms.ops.zeros((512, 64))}], str(tmp_path / "folder/zzz"),
                       format="safetensors")
    load_weights(model, str(tmp_path / "folder"))
    assert_equal(weights(model), expected)


def test_a_folder_with_every_tensor_twice_is_refused(model, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "folder")
    (tmp_path / "folder/model.safetensors.index.json").unlink()
    shutil.copy(next(tiny_checkpoint.glob("*.safetensors")), tmp_path / "folder/copy.safetensors")
    with pytest.raises(ValueError, match="more than one checkpoint in this folder, copy.safetensors, model-00001"):
        load_weights(model, str(tmp_path / "folder"))


# A head that the config ties to the embedding

TIED = {"tie_word_embeddings": True}
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.embedding_weight"


def with_equal_head(entries):
    entries[HEAD] = ms.Parameter(entries[EMBEDDING].asnumpy(), name=HEAD)


@pytest.fixture
def tied():
    return QwenForCausalLM(QwenConfig.from_hf_config(TINY, **TIED))


def test_a_tied_model_takes_a_checkpoint_without_a_head_or_with_an_equal_one(model, tied, tmp_path):
    without = saved(model, tmp_path / "without.ckpt", lambda entries: entries.pop(HEAD))
    equal = saved(model, tmp_path / "equal.ckpt", with_equal_head)
    for path in (without, equal):
        load_weights(tied, path)
        np.testing.assert_array_equal(tied.lm_head.weight.asnumpy(), weights(model)[EMBEDDING])


def test_a_tied_model_refuses_a_checkpoint_with_another_head(model, tied, tmp_path):
    path = saved(model, tmp_path / "x.ckpt", lambda entries: None)
    message = f"x.ckpt: {HEAD} is not {EMBEDDING}, but the config ties the two: set .tie_word_embeddings. to false"
    with pytest.raises(ValueError, match=message):
        load_weights(tied, path)
    with pytest.raises(ValueError, match=f"{HEAD} is not {EMBEDDING}, but the config ties the two"):
        prepare_weights(tied, ms.load_checkpoint(path))
    assert prepare_weights(tied, ms.load_checkpoint(saved(model, tmp_path / "equal.ckpt", with_equal_head)))


def test_a_model_with_a_head_refuses_a_checkpoint_without_one(model, tmp_path):
    path = saved(model, tmp_path / "x.ckpt", lambda entries: entries.pop(HEAD))
    with pytest.raises(ValueError, match=rf"1 of \d+ weights are missing, the first is {HEAD}; .* if the head of this "
                                         'model is the embedding, set "tie_word_embeddings" to true in its config'):
        load_weights(model, path)


def test_an_adapter_is_no_checkpoint(model, tmp_path):
    save_file({"base_model.model.transformer.layers.0.attention.wq.lora_A.weight": torch.ones(1)},
              tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a LoRA adapter, not a model: merge it into its base model first"):
        load_weights(model, str(tmp_path / "x.safetensors"))
