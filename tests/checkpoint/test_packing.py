"""How a config describes quantized weights, how they are packed, and what they stand for."""
import json

import numpy as np
import pytest

from qwen_mindspore.checkpoint.packing import (
    Quantization,
    agreed_quantization,
    dequantize,
    find_quantization,
    pack,
    sort_by_group,
    unpack,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_undoes_packing(random, bits):
    levels = random.integers(0, 2 ** bits, (5, 12)).astype(np.uint8)
    packed = pack(levels, bits)
    assert (packed.shape, packed.dtype) == ((5, 12 * bits // 8), np.uint8)
    np.testing.assert_array_equal(unpack(packed, bits), levels)


def test_the_first_of_two_inputs_is_in_the_low_half_of_a_byte():
    assert pack(np.array([[1, 2, 15, 0]], np.uint8), 4).tolist() == [[0x21, 0x0F]]


@pytest.mark.parametrize("group_size, groups", [(4, 3), (5, 3), (-1, 1), (100, 1)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_is_the_level_less_its_zero_times_the_scale(random, bits, group_size, groups):
    levels = random.integers(0, 2 ** bits, (3, 12)).astype(np.uint8)
    zeros = random.integers(0, 2 ** bits, (3, groups)).astype(np.uint8)
    scales = random.uniform(0.1, 1, (3, groups)).astype(np.float16)
    order = random.permutation(12).astype(np.int32)
    expected = np.empty((3, 12), np.float32)
    for output in range(3):
        for column in range(12):
            group = 0 if group_size == -1 else column // group_size
            expected[output, order[column]] = np.float32(scales[output, group]) * np.float32(
                int(levels[output, column]) - int(zeros[output, group]))
    actual = dequantize(pack(levels, bits), scales, zeros, bits, group_size, order)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(dequantize(pack(levels, bits), scales, zeros, bits, group_size), expected[:, order])


def test_sorting_keeps_the_sequence_within_a_group():
    order = sort_by_group(np.array([1, 0, 1, 0, 2, 0]))
    assert (order.tolist(), order.dtype) == ([1, 3, 5, 0, 2, 4], np.int32)


def test_shapes_are_those_of_the_files():
    quantization = Quantization(bits=4, group_size=128, desc_act=True)
    assert quantization.shapes(10, 300) == {"weight": (10, 150), "scales": (10, 3), "zeros": (10, 3), "order": (300,)}
    assert Quantization(bits=8, group_size=-1).shapes(10, 300) == {
        "weight": (10, 300), "scales": (10, 1), "zeros": (10, 1)}
    with pytest.raises(ValueError, match="33 inputs of 4 bits don't fill whole bytes"):
        quantization.shapes(10, 33)


def test_all_linears_of_the_layers_are_covered_unless_it_says_otherwise():
    usual = Quantization(bits=4, group_size=128)
    names = ["transformer.layers.11.attention.wq", "transformer.layers.0.feed_forward.w2", "lm_head", "transformer.wte"]
    assert [usual.covers(name) for name in names] == [True, True, False, False]
    other = Quantization(bits=4, group_size=128, quantized=["transformer.layers.*.attention.w[qk]", "lm_head"])
    assert [other.covers(name) for name in names] == [True, False, True, False]


def test_a_dict_says_the_same():
    settings = {"bits": 4, "group_size": 64, "desc_act": True, "quant_method": "rtn", "quantized": ["lm_head"],
                "sym": False}
    assert Quantization.from_dict({**settings, "damp_percent": 0.1}).to_dict() == settings
    assert "quantized" not in Quantization(bits=4, group_size=64).to_dict()
    assert Quantization.from_dict(None) is None


@pytest.mark.parametrize("settings, said", [
    ({"bits": 3, "group_size": 128}, "bits: expected 4 or 8, found 3"),
    ({"bits": "four", "group_size": 128}, "bits: expected 4 or 8, found 'four'"),
    ({"bits": 4, "group_size": 0}, "group_size: expected a positive whole number, or -1 for one group, found 0"),
    ({"bits": 4, "group_size": 12.8}, "group_size: expected .*found 12.8"),
    ({"bits": 4, "group_size": 128, "quant_method": "awq"}, "quant_method: expected gptq or rtn, found 'awq'"),
    ({"bits": 4, "group_size": 128, "desc_act": "none"}, "desc_act: expected true or false, found 'none'"),
    ({"bits": 4, "group_size": 128, "quantized": [7]}, "quantized: expected a list of names or patterns"),
    ({"bits": 4}, "expected at least bits and group_size, found {'bits': 4}"),
    ("int4", "expected at least bits and group_size, found 'int4'"),
])
def test_what_cannot_be_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=f"quantization: {said}"):
        Quantization.from_dict(settings)


INT4 = {"bits": 4, "group_size": 128}


def write_config(folder, **settings):
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", **settings}))
    return folder


def test_a_checkpoint_says_how_it_is_quantized(tmp_path):
    write_config(tmp_path, quantization=INT4)
    (tmp_path / "qwen.ckpt").touch()
    assert find_quantization(tmp_path) == INT4
    assert find_quantization(str(tmp_path / "qwen.ckpt")) == INT4


def test_a_checkpoint_that_says_nothing_is_not_quantized(tmp_path):
    assert find_quantization(tmp_path) is None
    assert find_quantization(write_config(tmp_path)) is None
    assert find_quantization(write_config(tmp_path, model_type="llama", quantization="theirs")) is None


@pytest.mark.parametrize("content, said", [
    ("{", "not valid JSON"), ('{"model_type": "qwen", "quantization": {"bits": 2, "group_size": 8}}', "found 2")])
def test_a_wrong_config_is_named(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        find_quantization(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_config_and_checkpoint_agree_or_one_of_them_decides(tmp_path):
    write_config(tmp_path, quantization={**INT4, "sym": False, "damp_percent": 0.01})
    assert agreed_quantization(None, "") is None
    assert agreed_quantization(INT4, "") == INT4
    assert agreed_quantization(None, tmp_path)["sym"] is False
    assert agreed_quantization(INT4, tmp_path)["sym"] is False
    with pytest.raises(ValueError, match="config says .*'group_size': 64.*json of .*'group_size': 128.*: leave it out"):
        agreed_quantization({**INT4, "group_size": 64}, tmp_path)
    assert agreed_quantization(INT4, write_config(tmp_path)) == INT4
