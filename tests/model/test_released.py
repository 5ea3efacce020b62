"""from_hf_config: sizes are the file's or none, ids of tokens are the folder's and within the vocabulary."""
import base64
import json

import mindspore as ms
import pytest

from helpers import TINY
from qwen_mindspore.model.config import QwenConfig

SIZES = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 176, "seq_length": 64}
FIRST = {"model_type": "qwen", "n_embd": 64, "n_layer": 3, "n_head": 4, "ffn_hidden_size": 176, "n_positions": 512,
         "seq_length": 64, "padded_vocab_size": 512, "vocab_size": 500, "kv_channels": 16, "layer_norm_epsilon": 1e-6,
         "rotary_pct": 1.0, "no_bias": True, "use_flash_attn": True, "params_dtype": "torch.bfloat16", "n_inner": None}


def folder(tmp_path, config, generation=None, tokens=None):
    """A Hugging Face folder without weights."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    if tokens is not None:
        lines = [f"{base64.b64encode(number.to_bytes(1 + number // 256, 'big')).decode()} {number}\n"
                 for number in range(tokens)]
        (tmp_path / "qwen.tiktoken").write_text("".join(lines))
    return tmp_path


def test_a_config_of_the_first_release_is_read(tmp_path):
    config = QwenConfig.from_hf_config(folder(tmp_path, FIRST))
    assert (config.hidden_size, config.num_layers, config.num_heads, config.ffn_hidden_size) == (64, 3, 4, 88)
    assert (config.vocab_size, config.kv_channels, config.rms_norm_eps) == (512, 16, 1e-6)
    assert (config.train_seq_length, config.seq_length, config.max_position_embedding) == (64, 512, 512)
    assert (config.use_dynamic_ntk, config.use_logn_attn, config.compute_dtype) == (False, False, ms.bfloat16)


@pytest.mark.parametrize("missing", SIZES)
def test_a_size_that_is_missing_is_named_and_none_stands_in_for_it(tmp_path, missing):
    config = {"model_type": "qwen", **{key: value for key, value in SIZES.items() if key != missing}}
    with pytest.raises(ValueError, match=f"config.json: {missing} missing, of a model's sizes") as error:
        QwenConfig.from_hf_config(folder(tmp_path, config))
    assert str(tmp_path) in str(error.value)
    assert QwenConfig.from_hf_config(tmp_path, **{missing: SIZES[missing]}).hidden_size == 64


@pytest.mark.parametrize("missing, name", [("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"),
                                           ("n_head", "num_attention_heads"), ("ffn_hidden_size", "intermediate_size")])
def test_a_size_that_the_first_release_lacks_is_named_as_well(tmp_path, missing, name):
    config = {key: value for key, value in FIRST.items() if key != missing}
    with pytest.raises(ValueError, match=f"config.json: {name} missing"):
        QwenConfig.from_hf_config(folder(tmp_path, config))


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, "
                                         "vocab_size, seq_length missing"):
        QwenConfig.from_hf_config(folder(tmp_path, {"model_type": "qwen"}))


@pytest.mark.parametrize("length", [{"max_position_embeddings": 128}, {"seq_length": 128}])
def test_either_length_is_enough(tmp_path, length):
    config = {key: value for key, value in SIZES.items() if key != "seq_length"}
    assert QwenConfig.from_hf_config(folder(tmp_path, {"model_type": "qwen", **config, **length})).seq_length == 128


def ids(config):
    return config.eos_token_id, config.pad_token_id, config.bos_token_id


@pytest.mark.parametrize("config, generation, tokens, expected", [
    ({}, {"eos_token_id": 7, "pad_token_id": 8, "bos_token_id": 9}, None, (7, 8, 9)),
    ({}, {"eos_token_id": [7, 511], "pad_token_id": 8}, None, ([7, 511], 8, -1)),
    ({"eos_token_id": 5, "pad_token_id": 6}, {"eos_token_id": 7}, None, (7, 6, -1)),
    ({"eos_token_id": 5}, None, None, (5, -1, -1)),
    ({}, None, 260, (260, 260, 260)),
    ({}, {"eos_token_id": None, "chat_format": "raw"}, 300, (300, 300, 300)),
    ({}, {"eos_token_id": 7}, 300, (7, 300, 300)),
    ({}, None, None, (-1, -1, -1)),
    ({"vocab_size": 151936}, None, None, (151643, 151643, 151643)),
    ({"vocab_size": 151643}, None, None, (-1, -1, -1)),
    ({"eos_token_id": -1}, None, 300, (-1, 300, 300)),
])
def test_ids_come_from_the_files_or_the_vocabulary(tmp_path, config, generation, tokens, expected):
    path = folder(tmp_path, {"model_type": "qwen", **SIZES, **config}, generation, tokens)
    assert ids(QwenConfig.from_hf_config(path)) == expected
    assert ids(QwenConfig.from_hf_config(path / "config.json")) == expected
    assert ids(QwenConfig.from_hf_config(path, eos_token_id=1, pad_token_id=2, bos_token_id=3)) == (1, 2, 3)


@pytest.mark.parametrize("config, generation, tokens, said", [
    ({}, {"eos_token_id": 151643}, None, "generation_config.json: eos_token_id: 151643 is beyond the vocabulary, of a "
                                         "vocab_size of 512 by config.json"),
    ({}, {"pad_token_id": 512}, None, "generation_config.json: pad_token_id: 512 is beyond the vocabulary"),
    ({}, {"eos_token_id": [1, 600]}, None, "generation_config.json: eos_token_id: 600 is beyond the vocabulary"),
    ({"eos_token_id": 151643}, None, None, "config.json: eos_token_id: 151643 is beyond the vocabulary"),
    ({"bos_token_id": 151643}, None, None, "config.json: bos_token_id: 151643 is beyond the vocabulary"),
    ({}, {"eos_token_id": "<|endoftext|>"}, None, "generation_config.json: eos_token_id: expected a token id"),
    ({}, {"pad_token_id": 1.5}, None, "generation_config.json: pad_token_id: expected a token id"),
    ({}, [], None, "generation_config.json: expected a JSON object, found list"),
    ({}, None, 512, "qwen.tiktoken: its 512 tokens and <|endoftext|> are more than vocab_size, 512, of config.json"),
])
def test_an_id_beyond_the_vocabulary_is_refused_by_name(tmp_path, config, generation, tokens, said):
    path = folder(tmp_path, {"model_type": "qwen", **SIZES, **config}, generation, tokens)
    with pytest.raises(ValueError) as error:
        QwenConfig.from_hf_config(path)
    assert said in str(error.value) and str(tmp_path) in str(error.value)


def test_a_damaged_vocabulary_gives_no_id_and_is_the_tokenizers_affair(tmp_path):
    path = folder(tmp_path, {"model_type": "qwen", **SIZES}, tokens=255)
    assert ids(QwenConfig.from_hf_config(path)) == (-1, -1, -1)


def test_the_golden_model_has_no_ids_beyond_its_vocabulary():
    assert ids(QwenConfig.from_hf_config(TINY)) == (-1, -1, -1)


@pytest.mark.parametrize("content, said", [
    ({"model_type": "qwen", **SIZES, "visual": {}}, "visual: this is a Qwen-VL, which reads images"),
    ({"model_type": "qwen2", **SIZES}, "found 'qwen2': give the folder of a model"),
    ({**FIRST, "hidden_size": 128}, "n_embd is 64, but hidden_size, which says the same, is 128"),
    ({**FIRST, "activation": "gelu"}, "activation: expected 'swiglu'"),
])
def test_another_model_is_named(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        QwenConfig.from_hf_config(folder(tmp_path, content))
