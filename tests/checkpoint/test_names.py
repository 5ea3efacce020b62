"""The table of names between Hugging Face and MindSpore."""
import itertools

import pytest

from helpers.checkpoints import CONFIG
from qwen_mindspore.checkpoint.names import Piece, hf_shapes, hf_to_ms, linears, ms_shapes, ms_to_hf

QWEN_7B = {"model_type": "qwen", "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32,
           "num_attention_heads": 32, "kv_channels": 128, "intermediate_size": 22016, "tie_word_embeddings": False}


def test_qwen_7b_has_the_published_shapes():
    hf, ms = hf_shapes(QWEN_7B), ms_shapes(QWEN_7B)

    assert len(hf) == 3 + 32 * 8
    assert hf["transformer.wte.weight"] == ms["transformer.wte.embedding_weight"] == (151936, 4096)
    assert hf["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert hf["transformer.h.31.attn.c_attn.bias"] == (12288,)
    assert ms["transformer.layers.31.attention.wk.weight"] == (4096, 4096)
    assert ms["transformer.layers.31.attention.wv.bias"] == (4096,)
    assert hf["transformer.h.0.mlp.c_proj.weight"] == (4096, 11008)
    assert ms["transformer.layers.0.feed_forward.w2.weight"] == (4096, 11008)
    assert hf["lm_head.weight"] == ms["lm_head.weight"] == (151936, 4096)


def test_gate_and_up_cross_over():
    table = hf_to_ms(CONFIG)

    for ms_name, hf_name in {"w1": "w1", "w3": "w2", "w2": "c_proj"}.items():
        tensor = table[f"transformer.layers.1.feed_forward.{ms_name}.weight"]
        assert tensor.pieces == (Piece(f"transformer.h.1.mlp.{hf_name}.weight", 0, tensor.shape[0]),)


def test_query_key_and_value_are_the_thirds_of_c_attn():
    name = "transformer.layers.0.attention.w{}.weight"
    thirds = [hf_to_ms(CONFIG)[name.format(part)].pieces for part in "qkv"]
    whole = ms_to_hf(CONFIG)["transformer.h.0.attn.c_attn.weight"]

    # 2 heads of kv_channels 6, whatever hidden_size is
    rows = [(piece.first, piece.last) for (piece,) in thirds]
    assert rows == [(0, 12), (12, 24), (24, 36)]
    assert whole.shape == (36, 8)
    assert whole.pieces == tuple(Piece(name.format(part), 0, 12) for part in "qkv")


def test_every_row_of_either_side_is_used_once():
    for tensors, sources in ((hf_to_ms(CONFIG), hf_shapes(CONFIG)), (ms_to_hf(CONFIG), ms_shapes(CONFIG))):
        used = sorted(piece for tensor in tensors.values() for piece in tensor.pieces)
        for name, shape in sources.items():
            pieces = [piece for piece in used if piece.name == name]
            assert pieces[0].first == 0
            assert pieces[-1].last == shape[0]
            assert all(above.last == below.first for above, below in itertools.pairwise(pieces))


def test_a_tied_head_is_on_neither_side():
    tied = {**CONFIG, "tie_word_embeddings": True}

    assert "lm_head.weight" not in hf_shapes(tied)
    assert "lm_head.weight" not in ms_shapes(tied)


@pytest.mark.parametrize("value", [None, 0, "8"])
def test_a_size_that_cannot_be_is_named(value):
    with pytest.raises(ValueError, match=f"config.json: hidden_size: expected a positive integer, found {value!r}$"):
        hf_to_ms({**CONFIG, "hidden_size": value})


QUANTIZED = {**CONFIG, "kv_channels": 8, "quantization": {"bits": 4, "group_size": 4, "desc_act": True}}


def test_a_quantized_linear_is_four_tensors_on_both_sides():
    hf, ms = ms_to_hf(QUANTIZED), hf_to_ms(QUANTIZED)

    name = "transformer.layers.1.attention.wk"
    assert {kind: (ms[f"{name}.{kind}"].shape, ms[f"{name}.{kind}"].dtype)
            for kind in ("weight", "scales", "zeros", "order")} == {
        "weight": ((16, 4), "uint8"), "scales": ((16, 2), None), "zeros": ((16, 2), "uint8"),
        "order": ((8,), "int32")}
    whole = "transformer.h.1.attn.c_attn"
    assert ms[f"{name}.scales"].pieces == (Piece(f"{whole}.scales", 16, 32),)
    assert ms[f"{name}.bias"].pieces == (Piece(f"{whole}.bias", 16, 32),)
    assert hf[f"{whole}.weight"].shape == (48, 4)
    assert ms["lm_head.weight"] == hf_to_ms(CONFIG)["lm_head.weight"]


def test_query_key_and_value_share_an_order():
    whole = "transformer.h.0.attn.c_attn.order"
    ms = hf_to_ms(QUANTIZED)

    assert all(ms[f"transformer.layers.0.attention.w{part}.order"].pieces == (Piece(whole, 0, 8),) for part in "qkv")
    assert ms_to_hf(QUANTIZED)[whole].pieces == (Piece("transformer.layers.0.attention.wq.order", 0, 8),)


def test_a_quantized_embedding_has_no_order():
    config = {**QUANTIZED, "quantization": {**QUANTIZED["quantization"], "quantized": ["transformer.wte"]}}
    names = [name for name in ms_shapes(config) if name.startswith("transformer.wte")]
    assert names == ["transformer.wte.embedding_weight", "transformer.wte.scales", "transformer.wte.zeros"]


def test_linears_are_listed_with_their_sizes():
    listed = linears(QUANTIZED)

    assert listed["transformer.h.1.attn.c_attn"] == (
        tuple(f"transformer.layers.1.attention.w{part}" for part in "qkv"), 48, 8)
    assert listed["transformer.h.0.mlp.c_proj"] == (("transformer.layers.0.feed_forward.w2",), 8, 10)
    assert listed["lm_head"] == (("lm_head",), 11, 8)
    assert len(listed) == 2 * 5 + 1
