"""QwenConfig: names, sizes, files and what it refuses."""
import json

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindformers import LlamaConfig

from helpers import TINY
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.config_keys import check_key


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
    ({"hidden_size": 100, "num_heads": 3}, "hidden_size: 100 is not a multiple of the 3 attention heads"),
    ({"intermediate_size": 33}, "intermediate_size"),
    ({"kv_channels": 15}, "kv_channels"),
    ({"n_kv_heads": 4, "num_heads": 32}, "n_kv_heads"),
    ({"num_layers": 0}, "num_layers"),
    ({"seq_length": "eight thousand"}, "seq_length"),
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


@pytest.mark.parametrize("key, value, expected", [
    ("num_blocks", -5, "a positive integer or None"),
    ("num_blocks", 0, "a positive integer or None"),
    ("rms_norm_eps", "x", "a number above 0"),
    ("layer_norm_epsilon", 0, "a number above 0"),
    ("rms_norm_eps", float("nan"), "a number above 0"),
    ("theta", None, "a number above 0"),
    ("rotary_emb_base", True, "a number above 0"),
    ("max_position_embeddings", "8192.5", "a positive integer or None"),
    ("batch_size", 1.5, "a positive integer"),
    ("block_size", True, "a positive integer"),
    ("num_hidden_layers", "24 layers", "a positive integer"),
    ("num_hidden_layers", 2**40, "a positive integer"),
    ("hidden_size", float("inf"), "a positive integer"),
    ("vocab_size", [151936], "a positive integer"),
    ("theta", float("inf"), "a number above 0"),
    ("theta", "nan", "a number above 0"),
    ("use_logn_attn", "", "true or false"),
    ("use_logn_attn", [], "true or false"),
    ("use_logn_attn", float("nan"), "true or false"),
    ("chat_format", True, "raw, chatml or None"),
    ("quantization", "int4", "a dict or None"),
    ("checkpoint_name_or_path", "a\0b", "a path or None"),
    ("use_dynamic_ntk", "perhaps", "true or false"),
    ("use_past", 2, "true or false"),
    ("tie_word_embeddings", None, "true or false"),
    ("chat_format", "chatlm", "raw, chatml or None"),
    ("compute_dtype", "fp8", "float16, bfloat16 or float32"),
    ("compute_dtype", None, "float16, bfloat16 or float32"),
    ("param_init_type", "int8", "float16, bfloat16 or float32"),
    ("emb_dropout_prob", 1.0, "a number from 0, below 1"),
    ("eos_token_id", [1, -2], "a token id, -1 for none, a list of them or None"),
    ("pad_token_id", "<|endoftext|>", "a token id, -1 for none or None"),
    ("top_p", 1.5, "a number above 0, up to 1"),
    ("temperature", -1, "a number from 0"),
    ("use_flash_attention", "never", "true or false or None"),
    ("checkpoint_name_or_path", 7, "a path or None"),
    ("model_type", "llama", "'qwen'"),
])
def test_a_value_of_another_kind_is_refused_by_name(key, value, expected):
    with pytest.raises(ValueError) as error:
        QwenConfig(**{key: value})
    assert str(error.value) == f"{key}: expected {expected}, found {value!r}"


@pytest.mark.parametrize("key, value, off", [("top_k", -1, 0), ("top_k", "-1", 0), ("top_p", 0, 1), ("top_p", -0.5, 1),
                                             ("repetition_penalty", 0, 1)])
def test_who_tries_to_switch_sampling_off_is_told_how(key, value, off):
    with pytest.raises(ValueError, match=f"^{key}: expected .*, found {value!r}: write {off} to switch it off$"):
        QwenConfig(**{key: value})


@pytest.mark.parametrize("key, value, meant", [
    ("temperature", 0, 0), ("temperature", "0.0", 0.0),
    ("use_dynamic_ntk", "false", False), ("use_past", "True", True), ("use_logn_attn", 0, False),
    ("rms_norm_eps", "1e-5", 1e-5), ("rotary_emb_base", "1e6", 1e6), ("theta", np.float32(5e5), 5e5),
    ("rotary_emb_base", 10000, 10000), ("num_blocks", np.int64(7), 7), ("compute_dtype", "BFloat16", ms.bfloat16),
    ("compute_dtype", ms.float32, ms.float32),
    ("compute_dtype", "fp16", ms.float16), ("compute_dtype", "half", ms.float16), ("compute_dtype", "FP32", ms.float32),
    ("param_init_type", "bf16", ms.bfloat16), ("param_init_type", "torch.bfloat16", ms.bfloat16),
    ("tie_word_embeddings", "False", False), ("use_dynamic_ntk", "off", False), ("use_logn_attn", " TRUE ", True),
    ("tie_word_embeddings", "0", False), ("tie_word_embeddings", 1.0, True), ("do_sample", np.bool_(True), True),
    ("layer_norm_epsilon", "1e-5", 1e-5), ("seq_length", "4096", 4096), ("num_hidden_layers", 24.0, 24),
    ("num_attention_heads", "32.0", 32), ("seq_length", "1e3", 1000), ("max_position_embeddings", " 32768 ", 32768),
    ("eos_token_id", "151645", 151645), ("eos_token_id", ["151645", 151643.0], [151645, 151643]),
    ("chat_format", "ChatML", "chatml"), ("chat_format", "RAW", "raw"),
    ("eos_token_id", (1, 2), [1, 2]), ("eos_token_id", None, None),
    ("eos_token_id", -1, -1), ("chat_format", None, None), ("soc", "910B", "910B"),
    ("checkpoint_name_or_path", TINY, str(TINY)),
])
def test_a_value_that_can_mean_one_thing_is_taken_for_it(key, value, meant):
    small = {"seq_length": 1000} if key != "seq_length" else {}
    found = getattr(QwenConfig(**{**small, key: value}), key)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize("given, meant", [
    ({"bits": "4", "group_size": 32.0, "desc_act": "False", "sym": "true", "quantized": "transformer.layers.*"},
     {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "quantized": ["transformer.layers.*"]}),
    ({"bits": 8, "group_size": "-1", "sym": None, "damp_percent": "any"},
     {"bits": 8, "group_size": -1, "sym": None, "damp_percent": "any"}),
])
def test_what_is_said_of_quantization_is_taken_as_it_is_meant(given, meant):
    assert QwenConfig(quantization=given).quantization == meant


@pytest.mark.parametrize("given, said", [
    ({"bits": "four", "group_size": 8}, "quantization: bits: expected a positive integer, found 'four'"),
    ({"bits": None, "group_size": 8}, "quantization: bits: expected a positive integer, found None"),
    ({"bits": 4, "group_size": 8, "sym": 2}, "quantization: sym: expected true or false or None, found 2"),
    ({"bits": 4, "group_size": 8, "quantized": [1]}, "quantization: quantized: expected a list of texts or None"),
])
def test_what_can_not_be_meant_within_quantization_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        QwenConfig(quantization=given)


@pytest.mark.parametrize("key, near", [
    ("hiden_size", "; did you mean hidden_size?"), ("use_dynamic_nkt", "; did you mean use_dynamic_ntk?"),
    ("num_hiden_layers", "; did you mean num_hidden_layers?"), ("chatformat", "; did you mean chat_format?"),
    ("zzz", ""),
])
def test_a_key_that_there_is_not_is_refused_with_the_nearest_one(key, near):
    with pytest.raises(ValueError) as error:
        QwenConfig(**{key: 3})
    assert str(error.value) == f"{key}: no such key of a QwenConfig{near}"
    with pytest.raises(ValueError, match=key):
        QwenConfig.from_hf_config(TINY, **{key: 3})


def test_every_key_of_mindformers_and_of_a_released_config_is_known():
    hf = json.loads((TINY / "config.json").read_text())
    values = {**LlamaConfig().to_dict(), **hf}
    for key in values:
        check_key(key)
    assert QwenConfig(**hf).hidden_size == 64


def test_what_is_set_later_is_checked_by_validate():
    config = QwenConfig()
    config.use_past, config.compute_dtype, config.intermediate_size = "true", "float32", 512
    config.validate()
    assert (config.use_past, config.compute_dtype, config.ffn_hidden_size) == (True, ms.float32, 256)
    config.num_blocks = -5
    with pytest.raises(ValueError, match="num_blocks: expected a positive integer or None, found -5"):
        config.validate()


def test_the_width_of_a_branch_is_derived_and_may_not_contradict():
    assert QwenConfig(intermediate_size=512, ffn_hidden_size=256).ffn_hidden_size == 256
    with pytest.raises(ValueError, match="ffn_hidden_size: 512 contradicts intermediate_size: 512"):
        QwenConfig(intermediate_size=512, ffn_hidden_size=512)


SETTINGS = {"eos_token_id": [151645, 151643], "compute_dtype": "bfloat16", "chat_format": None, "num_blocks": 7,
            "quantization": {"bits": 4, "group_size": 32}, "rms_norm_eps": 1e-5, "use_dynamic_ntk": False,
            "intermediate_size": 512, "pad_token_id": None, "checkpoint_name_or_path": "qwen_7b"}


@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["defaults", "others"])
def test_a_config_that_is_saved_and_read_again_is_equal(settings, tmp_path):
    config = QwenConfig(**settings)
    assert QwenConfig(**config.to_dict()) == config
    config.save_pretrained(str(tmp_path), save_name="saved")
    assert QwenConfig.from_pretrained(str(tmp_path / "saved.yaml")) == config
    config.save_pretrained(str(tmp_path), save_json=True)
    assert QwenConfig.from_pretrained(str(tmp_path)) == config


def test_saving_leaves_what_else_is_in_the_yaml(tmp_path):
    (tmp_path / "saved.yaml").write_text("run_mode: predict\nmodel: {}\n")
    QwenConfig().save_pretrained(str(tmp_path), save_name="saved")
    whole = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert (whole["run_mode"], whole["model"]["arch"]["type"]) == ("predict", "QwenForCausalLM")


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


def test_from_hf_config_passes_over_what_other_programs_put_into_the_file(tmp_path, caplog):
    settings = {**json.loads((TINY / "config.json").read_text()), "id2label": {}, "hiden_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert QwenConfig.from_hf_config(tmp_path) == QwenConfig.from_hf_config(TINY)
    assert "of no meaning here and ignored: id2label, hiden_size" in caplog.text


@pytest.mark.parametrize("content, said", [
    ("{", "not valid JSON"),
    ('{"model_type": "qwen2"}', "model_type: expected 'qwen'"),
    ('{"model_type": "qwen", "quantization_config": {"bits": 4}}', "quantization_config: this is AutoGPTQ's"),
    ('{"model_type": "qwen", "quantization_config": {"quant_method": "awq", "bits": 4}}', "another method than GPTQ"),
    ('{"model_type": "qwen", "quantization_config": {"load_in_4bit": true}}', "another method than GPTQ"),
    ('{"model_type": "qwen", "quantization_config": "GPTQ!"}', "another method than GPTQ"),
    ('{"model_type": "qwen", "quantization": {"bits": 3, "group_size": 8}}', "quantization: bits: expected 4 or 8"),
    ('{"model_type": "qwen", "use_logn_attn": "often"}', "use_logn_attn: expected true or false, found 'often'"),
    ('{"model_type": "qwen", "hidden_size": 100, "num_attention_heads": 3}', "hidden_size"),
])
def test_from_hf_config_names_the_file_that_is_wrong(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        QwenConfig.from_hf_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_from_hf_config_takes_quoted_values_as_they_are_meant_and_reads_behind_a_byte_order_mark(tmp_path):
    settings = {**json.loads((TINY / "config.json").read_text()), "tie_word_embeddings": "False", "bf16": "false",
                "fp16": "False", "fp32": "True", "layer_norm_epsilon": "1e-6", "hidden_size": "64",
                "num_hidden_layers": 3.0, "use_logn_attn": "true"}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8-sig")
    assert QwenConfig.from_hf_config(tmp_path) == QwenConfig.from_hf_config(TINY)


YAML = "model:\n  model_config: {type: QwenConfig, num_layers: '2', tie_word_embeddings: 'False', theta: 1e6}\n" \
       "  arch: {type: QwenForCausalLM}\n"


def test_from_pretrained_reads_a_yaml_as_it_is_meant(tmp_path):
    (tmp_path / "own.yaml").write_text(YAML, encoding="utf-8-sig")
    config = QwenConfig.from_pretrained(str(tmp_path / "own.yaml"))
    assert (config.num_layers, config.tie_word_embeddings, config.theta) == (2, False, 1e6)


@pytest.mark.parametrize("content, said", [
    ("", "expected a YAML of sections, found NoneType"),
    ("- model", "expected a YAML of sections, found list"),
    ("context: {}", "expected a section model with model_config"),
    ("model:", "expected a section model with model_config"),
    ("model: {model_config: [1]}", "expected a section model with model_config"),
    (YAML.replace("theta: 1e6", "theta: big"), "theta: expected a number above 0, found 'big'"),
    (YAML.replace("theta: 1e6", "thetta: 1e6"), "thetta: no such key of a QwenConfig; did you mean theta?"),
    (YAML.replace("type: QwenConfig, ", ""), "type"),
])
def test_from_pretrained_names_the_yaml_that_is_wrong(content, said, tmp_path):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        QwenConfig.from_pretrained(str(tmp_path / "own.yaml"))
    assert str(error.value).startswith(str(tmp_path / "own.yaml"))


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


def test_in_a_plain_llama_config_qwens_limit_of_positions_wins_over_the_one_that_follows_from_seq_length():
    llama = LlamaConfig(seq_length=1024, max_position_embeddings="32768", tie_word_embeddings="False")
    config = QwenConfig.from_llama_config(llama)
    assert (config.seq_length, config.max_position_embedding, config.tie_word_embeddings) == (1024, 32768, False)


def test_a_plain_llama_config_may_carry_anything_but_what_is_read_must_be_right():
    llama = LlamaConfig(seq_length=1024, multi_query_group_num=2, fine_grain_interleave="x", zzz=object())
    assert QwenConfig.from_llama_config(llama).to_dict() == QwenConfig.from_llama_config(
        LlamaConfig(seq_length=1024)).to_dict()
    for key, value in {"rms_norm_eps": "x", "rotary_emb_base": "x", "batch_size": 0, "use_dynamic_ntk": "x"}.items():
        with pytest.raises(ValueError, match=f"{key}: expected"):
            QwenConfig.from_llama_config(LlamaConfig(**{key: value}))


def test_the_width_in_a_llama_config_is_that_of_one_branch():
    llama = LlamaConfig(hidden_size=64, num_layers=3, num_heads=4, intermediate_size=88)
    assert QwenConfig.from_llama_config(llama).ffn_hidden_size == 88


def test_a_qwen_config_is_kept():
    config = QwenConfig()
    assert QwenConfig.from_llama_config(config) is config
