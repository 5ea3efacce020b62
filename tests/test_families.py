"""The table of families: sizes, and what is said of every tensor."""
import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TINY
from qwen_mindspore import families
from qwen_mindspore.checkpoint.names import Piece, hf_to_ms, linears, ms_to_hf
from qwen_mindspore.families import QWEN, SIDES, Keys, Sizes, family_of
from qwen_mindspore.model.torch_qwen import TorchQwen

QWEN_72B = {"model_type": "qwen", "vocab_size": 152064, "hidden_size": 8192, "num_hidden_layers": 80,
            "num_attention_heads": 64, "kv_channels": 128, "intermediate_size": 49152}
GROUPED = {"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "intermediate_size": 20, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


# Sizes

def test_sizes_come_from_the_config():
    assert QWEN.sizes(QWEN_72B) == Sizes(vocab=152064, hidden=8192, layers=80, heads=64, kv_heads=64, head_size=128,
                                         ffn=24576, tied=False)
    assert (QWEN.sizes(QWEN_72B).query, QWEN.sizes(QWEN_72B).kv) == (8192, 8192)
    assert QWEN.sizes({**QWEN_72B, "kv_channels": 96}).query == 64 * 96
    assert QWEN.sizes({**QWEN_72B, "kv_channels": None}).head_size == 128
    assert QWEN.sizes({**QWEN_72B, "tie_word_embeddings": True}).tied


@pytest.mark.parametrize("change, message", [
    ({"vocab_size": None}, "vocab_size: expected a positive integer, found None"),
    ({"hidden_size": 0}, "hidden_size: expected a positive integer, found 0"),
    ({"num_attention_heads": "64"}, "num_attention_heads: expected a positive integer, found '64'"),
    ({"num_hidden_layers": True}, "num_hidden_layers: expected an integer from 1 to 10000, found True"),
    ({"intermediate_size": 49151}, "intermediate_size is 49151, expected a multiple of 2"),
    ({"kv_channels": -1}, "kv_channels: expected a positive integer or None, found -1"),
    ({"kv_channels": None, "num_attention_heads": 60},
     "hidden_size: 8192 is not a multiple of the 60 attention heads; give kv_channels, the size of a head"),
])
def test_a_size_that_can_not_be_is_named(change, message):
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        QWEN.sizes({**QWEN_72B, **change})


@pytest.mark.parametrize("found", [None, "qwen2", 7])
def test_a_model_of_no_known_family_is_refused(found):
    message = rf"^x.json: model_type: expected 'qwen' \(the first generation\), found {found!r}$"
    with pytest.raises(ValueError, match=message):
        family_of({"model_type": found}, "x.json")


# Tensors

def test_every_name_is_said_once_on_the_sides_where_nothing_is_fused():
    tensors = QWEN.tensors(QWEN_72B)
    assert len(tensors) == 3 + 80 * 12
    for side in ("ms", "qwen2"):
        assert len({tensor.names[side] for tensor in tensors}) == len(tensors)
    assert all(set(tensor.names) == set(SIDES) for tensor in tensors)


def test_a_tensor_by_all_its_names():
    (tensor,) = [tensor for tensor in QWEN.tensors(QWEN_72B)
                 if (tensor.role, tensor.layer, tensor.kind) == ("k", 7, "bias")]
    assert tensor.names == {"ms": "transformer.layers.7.attention.wk.bias", "hf": "transformer.h.7.attn.c_attn.bias",
                            "gguf": "blk.7.attn_qkv.bias", "qwen2": "model.layers.7.self_attn.k_proj.bias"}
    assert (tensor.shape, tensor.split) == ((8192,), 0)
    assert QWEN.tensors(QWEN_72B)[0].names["ms"] == "transformer.wte.embedding_weight"


def test_the_names_are_those_of_the_golden_checkpoint():
    from safetensors import safe_open
    with safe_open(TINY / "model.safetensors", "pt") as file:
        expected = set(file.keys())
    config = json.loads((TINY / "config.json").read_text())
    assert {tensor.names["hf"] for tensor in QWEN.tensors(config)} == expected


def test_a_tied_head_is_the_embedding():
    assert "head" not in {tensor.role for tensor in QWEN.tensors({**QWEN_72B, "tie_word_embeddings": True})}
    assert (QWEN.head_name("hf", True), QWEN.head_name("ms", False)) == ("transformer.wte", "lm_head")


def test_linears_are_divided_so_that_a_layer_adds_up_twice():
    split = {(tensor.role, tensor.kind): tensor.split for tensor in QWEN.tensors(QWEN_72B)}
    by_outputs = {(role, "weight") for role in ("embedding", "head", "q", "k", "v", "up", "gate")}
    by_outputs |= {(role, "bias") for role in "qkv"}
    assert {key for key, axis in split.items() if axis == 0} == by_outputs
    assert {key for key, axis in split.items() if axis == 1} == {("o", "weight"), ("down", "weight")}
    assert {key[0] for key, axis in split.items() if axis is None} == {"attention_norm", "ffn_norm", "norm"}


# Another family is another table

@pytest.fixture
def llama(monkeypatch):
    """Llama's table: q, k and v apart, fewer heads of keys and values, no biases, other keys in its config.json."""
    def module(module):
        return module._replace(hf=module.qwen2, bias=False)

    family = dataclasses.replace(
        QWEN, model_type="llama", title="Llama", prefixes={**QWEN.prefixes, "hf": QWEN.prefixes["qwen2"]},
        keys=Keys("head_dim", "num_key_value_heads", 1, "rms_norm_eps", "rope_theta", tied=False),
        **{part: tuple(map(module, getattr(QWEN, part))) for part in ("before", "layer", "after")})
    monkeypatch.setitem(families.FAMILIES, "llama", family)
    return family


def test_a_family_with_grouped_heads_needs_a_table_alone(llama):
    table = hf_to_ms(GROUPED)
    assert table["transformer.layers.1.attention.wk.weight"].shape == (4, 8)
    assert table["transformer.layers.1.attention.wk.weight"].pieces == (
        Piece("model.layers.1.self_attn.k_proj.weight", 0, 4),)
    assert ms_to_hf(GROUPED)["model.layers.0.mlp.gate_proj.weight"].pieces == (
        Piece("transformer.layers.0.feed_forward.w3.weight", 0, 20),)
    assert linears(GROUPED)["model.layers.0.self_attn.v_proj"] == (("transformer.layers.0.attention.wv",), 4, 8)
    assert not [name for name in table if name.endswith("bias")]


def test_fused_projections_of_grouped_heads_are_stacked_by_their_own_rows(llama, monkeypatch):
    fused = dataclasses.replace(llama, layer=tuple(
        module._replace(hf="self_attn.qkv") if module.role in "qkv" else module for module in llama.layer))
    monkeypatch.setitem(families.FAMILIES, "llama", fused)
    rows = [hf_to_ms(GROUPED)[f"transformer.layers.0.attention.w{part}.weight"].pieces[0][1:] for part in "qkv"]
    assert rows == [(0, 8), (8, 12), (12, 16)]
    assert ms_to_hf(GROUPED)["model.layers.0.self_attn.qkv.weight"].shape == (16, 8)


def test_the_model_in_torch_reads_the_table(llama):
    """Grouped heads give what the same heads give when each is written for every query head that shares it."""
    torch.manual_seed(0)
    weights = {name: torch.randn(tensor.shape) for name, tensor in ms_to_hf(GROUPED).items()}
    plain = {**GROUPED, "num_key_value_heads": 4}
    repeated = {name: tensor.unflatten(0, (2, 2)).repeat_interleave(2, 0).flatten(0, 1)
                if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor for name, tensor in weights.items()}
    ids = torch.tensor([[1, 5, 3, 9]])
    found, expected = (TorchQwen(*model).logits(ids, {}) for model in ((GROUPED, weights), (plain, repeated)))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_an_error_lists_the_families_that_are_known(llama):
    with pytest.raises(ValueError, match=r"expected 'qwen' \(the first generation\) or 'llama' \(Llama\), found None"):
        family_of({})


@pytest.mark.process
def test_the_table_needs_nothing_but_common():
    folder = Path(families.__file__).parents[1]
    code = ("import sys, qwen_mindspore.families\n"
            "print([name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names])")
    run = subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(folder)}, capture_output=True,
                         text=True, check=True)
    found = ast.literal_eval(run.stdout)
    assert "qwen_mindspore.families" in found
    assert all(f"{name}.".startswith(("__main__.", "qwen_mindspore.")) for name in found), found
    rooms = {name.split(".")[1] for name in found if "." in name}
    assert rooms == {"families", "common"}
