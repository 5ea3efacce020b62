"""A config.json of the first release, n_embd and the like: read as what it meant then, or refused by name."""
import json

import pytest

from helpers.checkpoints import CONFIG, load_folder, random_tensors, same_bits, write_hf_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.checkpoint.first_release import in_todays_words

# As in Qwen-7B of August 2023, but for the sizes.
FIRST = {
    "activation": "swiglu", "apply_residual_connection_post_layernorm": False, "architectures": ["QWenLMHeadModel"],
    "attn_pdrop": 0.0, "bf16": False, "bias_dropout_fusion": True, "bos_token_id": 1, "embd_pdrop": 0.0,
    "eos_token_id": 1, "ffn_hidden_size": 20, "fp16": False, "fp32": True, "initializer_range": 0.02, "kv_channels": 6,
    "layer_norm_epsilon": 1e-5, "model_type": "qwen", "n_embd": 8, "n_head": 2, "n_inner": None, "n_layer": 2,
    "n_positions": 6144, "no_bias": True, "onnx_safe": None, "padded_vocab_size": 11, "params_dtype": "torch.bfloat16",
    "pos_emb": "rotary", "resid_pdrop": 0.1, "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True,
    "seq_length": 2048, "tie_word_embeddings": False, "tokenizer_type": "QWenTokenizer",
    "transformers_version": "4.31.0", "use_flash_attn": True, "use_dynamic_ntk": False, "use_logn_attn": False,
    "vocab_size": 9,
}


def test_a_model_of_the_first_release_converts_there_and_back(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), FIRST)
    convert_weight(folder, tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")
    back = load_folder(tmp_path / "back")
    assert all(same_bits(back[name], tensor) for name, tensor in random_tensors().items())
    assert json.loads((tmp_path / "back/config.json").read_text()) == FIRST


def test_old_keys_are_todays():
    today = in_todays_words(FIRST)
    assert {key: today[key] for key in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
        "vocab_size", "emb_dropout_prob", "attn_dropout_prob", "torch_dtype")} == {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
        "max_position_embeddings": 6144, "vocab_size": 11, "emb_dropout_prob": 0.0, "attn_dropout_prob": 0.0,
        "torch_dtype": "bfloat16"}
    assert not {"n_embd", "padded_vocab_size", "activation", "bias_dropout_fusion", "ffn_hidden_size"} & today.keys()


def test_what_the_first_release_left_out_meant_other_things_than_today():
    left_out = ("layer_norm_epsilon", "use_dynamic_ntk", "use_logn_attn")
    today = in_todays_words({key: value for key, value in FIRST.items() if key not in left_out})
    assert [today[key] for key in left_out] == [1e-5, False, False]
    assert in_todays_words({**FIRST, "layer_norm_epsilon": 1e-6, "use_logn_attn": True})["layer_norm_epsilon"] == 1e-6


def test_a_config_of_today_is_left_alone():
    assert in_todays_words(CONFIG) is CONFIG


def test_one_old_key_among_todays_is_read_too():
    between = {**{key: value for key, value in CONFIG.items() if key != "intermediate_size"}, "ffn_hidden_size": 20}
    assert in_todays_words(between) == CONFIG
    both = {**CONFIG, "ffn_hidden_size": 10}  # this project's: the width of one branch
    assert in_todays_words(both) == both


@pytest.mark.parametrize("change, message", [
    ({"hidden_size": 16}, "n_embd is 8, but hidden_size, which says the same, is 16: give one"),
    ({"num_hidden_layers": 4}, "n_layer is 2, but num_hidden_layers"),
    ({"vocab_size": 12}, "padded_vocab_size is 11, but vocab_size"),
    ({"activation": "gelu"}, "activation: expected 'swiglu', as in every Qwen, found 'gelu'"),
    ({"pos_emb": "learned"}, "pos_emb: expected 'rotary'"), ({"n_inner": 7}, "n_inner: expected None"),
    ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm: expected False"),
    ({"n_layer": None}, "num_hidden_layers: expected an integer from 1 to 10000, found None"),
    ({"n_head": "two"}, "num_attention_heads: expected a positive integer, found 'two'"),
])
def test_what_no_qwen_has_is_refused_by_name(tmp_path, change, message):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), {**FIRST, **change})
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        convert_weight(folder, tmp_path / "ms")
