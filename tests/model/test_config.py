"""QwenConfig: names, sizes, files and what it refuses."""
import json

import pytest
from mindformers import LlamaConfig

from helpers import TINY
from qwen_mindspore.model.config import QwenConfig


def test_both_vocabularies_of_names_say_the_same():
    qwen = QwenConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=64, rotary_emb_base=5e5,
                      layer_norm_epsilon=1e-5, intermediate_size=176)
    llama = QwenConfig(num_layers=3, num_heads=4, hidden_size=64, theta=5e5, rms_norm_eps=1e-5, intermediate_size=176)
    assert qwen.to_dict() == llama.to_dict()
    assert (qwen.num_layers, qwen.num_hidden_layers) == (3, 3)
    assert (qwen.theta, qwen.rotary_emb_base) == (5e5, 5e5)


def test_is_a_llama_config_with_sizes_of_qwen_7b_by_default():
    config = QwenConfig()
    assert isinstance(config, LlamaConfig)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_channels) == (4096, 32, 32, 128)
    assert (config.vocab_size, config.ffn_hidden_size, config.seq_length) == (151936, 11008, 8192)


def test_derived_sizes():
    config = QwenConfig(hidden_size=96, num_heads=3, intermediate_size=512, batch_size=2, seq_length=100)
    assert (config.kv_channels, config.ffn_hidden_size) == (32, 256)
    assert (config.blocks_per_sequence, config.cache_blocks) == (7, 14)


def test_the_cache_follows_what_is_set_later_and_what_num_blocks_says():
    config = QwenConfig(seq_length=2048)
    config.batch_size, config.seq_length = 16, 512
    assert config.cache_blocks == 16 * 32
    assert QwenConfig(num_blocks=7).cache_blocks == 7


@pytest.mark.parametrize("settings, named", [
    ({"num_layers": 2, "num_hidden_layers": 3}, "num_hidden_layers: 3 contradicts num_layers: 2"),
    ({"theta": 1e4, "rotary_emb_base": 1e6}, "rotary_emb_base"),
    ({"hidden_size": 100, "num_heads": 3}, "hidden_size: 100 is not a multiple of num_heads=3"),
    ({"intermediate_size": 33}, "intermediate_size"),
    ({"kv_channels": 15}, "kv_channels"),
    ({"n_kv_heads": 4, "num_heads": 32}, "n_kv_heads"),
    ({"num_layers": 0}, "num_layers"),
    ({"seq_length": "8192"}, "seq_length"),
    ({"seq_length": 4096, "max_position_embeddings": 2048}, "max_position_embeddings"),
    ({"rotary_pct": 0.25}, "rotary_pct: expected 1.0"),
    ({"no_bias": False}, "no_bias"),
    ({"attn_proj_has_bias": True}, "attn_proj_has_bias"),
    ({"use_cache_quantization": "int8"}, "use_cache_quantization: expected true or false, found 'int8'"),
    ({"quantization": {"bits": 4}}, "quantization: expected at least bits and group_size"),
])
def test_contradictions_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        QwenConfig(**settings)


def test_from_hf_config_reads_a_file_or_its_folder():
    config = QwenConfig.from_hf_config(TINY / "config.json")
    assert config.to_dict() == QwenConfig.from_hf_config(str(TINY)).to_dict()
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_channels) == (64, 3, 4, 16)
    assert (config.ffn_hidden_size, config.vocab_size, config.rms_norm_eps) == (88, 512, 1e-6)
    assert (config.use_dynamic_ntk, config.use_logn_attn, config.tie_word_embeddings) == (True, True, False)


def test_from_hf_config_holds_what_positions_allow_and_knows_the_training_length():
    config = QwenConfig.from_hf_config(TINY)
    assert (config.train_seq_length, config.seq_length, config.max_position_embedding) == (64, 512, 512)
    assert QwenConfig.from_hf_config(TINY, seq_length=100).seq_length == 100
    assert QwenConfig.from_hf_config(TINY, seq_length=100).train_seq_length == 64
    assert QwenConfig.from_hf_config(TINY, seq_length=1024).seq_length == 1024


def test_from_hf_config_takes_overrides_under_either_name():
    config = QwenConfig.from_hf_config(TINY, num_hidden_layers=2, theta=1e6, use_past=True)
    assert (config.num_layers, config.rotary_emb_base, config.use_past) == (2, 1e6, True)


@pytest.mark.parametrize("flags, dtype", [({"bf16": True}, "BFloat16"), ({"fp16": True}, "Float16"),
                                          ({"fp32": True}, "Float32"), ({"torch_dtype": "bfloat16"}, "BFloat16")])
def test_from_hf_config_reads_the_type(tmp_path, flags, dtype):
    settings = {**json.loads((TINY / "config.json").read_text()), "fp32": False, **flags}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert str(QwenConfig.from_hf_config(tmp_path).compute_dtype) == dtype


def test_from_hf_config_reads_how_a_converted_checkpoint_is_quantized(tmp_path):
    quantization = {"bits": 4, "group_size": 128, "damp_percent": 0.01}
    settings = {**json.loads((TINY / "config.json").read_text()), "quantization": quantization,
                "use_cache_quantization": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = QwenConfig.from_hf_config(tmp_path)
    assert (config.quantization, config.use_cache_quantization) == (quantization, True)


@pytest.mark.parametrize("content, said", [
    ("{", "not valid JSON"),
    ('{"model_type": "qwen2"}', "model_type: expected 'qwen'"),
    ('{"model_type": "qwen", "quantization_config": {"bits": 4}}', "quantization_config: this is AutoGPTQ's"),
    ('{"model_type": "qwen", "quantization": {"bits": 3, "group_size": 8}}', "quantization: bits: expected 4 or 8"),
    ('{"model_type": "qwen", "hidden_size": 100, "num_attention_heads": 3}', "hidden_size"),
])
def test_from_hf_config_names_the_file_that_is_wrong(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        QwenConfig.from_hf_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_from_hf_config_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        QwenConfig.from_hf_config(tmp_path)


def test_a_plain_llama_config_means_what_it_meant_to_the_first_port():
    llama = LlamaConfig(seq_length=1024, hidden_size=4096, num_hidden_layers=24, num_attention_heads=32,
                        vocab_size=151936, multiple_of=256, rms_norm_eps=1e-6, rotary_emb_base=10000, kv_channels=128,
                        rotary_pct=1.0, emb_dropout_prob=0.0, use_past=True, batch_size=2)
    config = QwenConfig.from_llama_config(llama)
    assert (config.num_layers, config.num_heads, config.kv_channels) == (24, 32, 128)
    assert config.ffn_hidden_size == 11008, "Llama's rule: two thirds of four times hidden_size, in steps of 256"
    assert config.cache_blocks == 2 * 1024 // 16
    assert (config.use_dynamic_ntk, config.use_logn_attn) == (False, False)


def test_the_width_in_a_llama_config_is_that_of_one_branch():
    llama = LlamaConfig(hidden_size=64, num_layers=3, num_heads=4, intermediate_size=88)
    assert QwenConfig.from_llama_config(llama).ffn_hidden_size == 88


def test_a_qwen_config_is_kept():
    config = QwenConfig()
    assert QwenConfig.from_llama_config(config) is config
