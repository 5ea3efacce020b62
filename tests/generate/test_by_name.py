"""The YAML of a model that was named: what its config.json and generation_config.json say, as the shipped ones do."""
import json
import shutil

import pytest
import yaml

from helpers import ROOT
from qwen_mindspore.common.configs import read_config
from qwen_mindspore.generate.build import build_config, build_tokenizer, load_config
from qwen_mindspore.generate.by_name import find_model, write_config
from qwen_mindspore.model.config import QwenConfig

CHAT = {"chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_window_size": 24000,
        "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1}
BASE = {"chat_format": "raw", "stop_words_ids": [[151643]], "eos_token_id": 151643, "pad_token_id": 151643,
        "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "kv_channels", "intermediate_size", "vocab_size",
         "layer_norm_epsilon", "rotary_emb_base", "use_dynamic_ntk", "use_logn_attn", "train_seq_length", "seq_length",
         "max_position_embeddings", "tie_word_embeddings", "use_past", "block_size", "batch_size", "compute_dtype",
         "param_init_type", "chat_format", "eos_token_id", "pad_token_id")
WEIGHTS = {"1_8b": 3.7e9, "7b": 15.4e9, "14b": 28.3e9, "72b": 144.6e9}


def released(folder, name, chat):
    """The folder of a released model, with holes for weights, and the YAML that is shipped for it."""
    shipped = read_config(ROOT / f"configs/predict_qwen_{name}{'_chat' if chat else ''}.yaml")
    values = shipped["model"]["model_config"]
    config = {key: values[key] for key in (*SIZES[:10], "max_position_embeddings", "tie_word_embeddings")}
    config |= {"model_type": "qwen", "seq_length": values["train_seq_length"], "fp16": True, "bf16": False,
               "no_bias": True, "rotary_pct": 1.0, "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(CHAT if chat else BASE))
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(WEIGHTS[name]))
    return folder, shipped


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("chat", [False, True], ids=["base", "chat"])
def test_it_says_what_the_shipped_one_says(tmp_path, name, chat):
    folder, shipped = released(tmp_path / "Qwen", name, chat)
    written = yaml.safe_load(write_config(folder, tmp_path / "config.yaml").read_text())
    expected, found = (QwenConfig(**{key: value for key, value in content["model"]["model_config"].items()
                                     if key != "type"}) for content in (shipped, written))
    for key in SIZES:
        ids = [getattr(config, key) for config in (expected, found)]
        assert ids[0] == ids[1] or ids[1] == [ids[0]], key
    for section, keys in (("processor", None), ("context", ("max_device_memory", "mode", "ascend_config"))):
        for key in keys or shipped[section]:
            assert written[section][key] == shipped[section][key]
    assert written["context"]["device_target"] == "auto"


def test_generation_is_what_generation_config_says(tmp_path):
    folder, _ = released(tmp_path / "Qwen", "7b", chat=True)
    found = yaml.safe_load(write_config(folder, tmp_path / "config.yaml").read_text())["model"]["model_config"]
    assert (found["do_sample"], found["top_p"], found["repetition_penalty"], found["max_decode_length"]) == (
        True, 0.8, 1.1, 512)


def test_without_generation_config_it_is_a_base_model(tmp_path):
    folder, _ = released(tmp_path / "Qwen", "7b", chat=False)
    (folder / "generation_config.json").unlink()
    found = yaml.safe_load(write_config(folder, tmp_path / "config.yaml").read_text())["model"]["model_config"]
    assert (found["chat_format"], found["eos_token_id"]) == ("raw", [151643])


def test_it_is_written_again_only_where_it_differs(tiny_checkpoint, tmp_path):
    path = write_config(tiny_checkpoint, tmp_path / "config.yaml")
    before = path.stat().st_ino
    assert write_config(tiny_checkpoint, path).stat().st_ino == before
    path.write_text("of an older version")
    assert yaml.safe_load(write_config(tiny_checkpoint, path).read_text())["model"]["model_config"]["hidden_size"] == 64


def test_a_folder_is_all_that_a_model_needs(tiny_hf, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_hf, tmp_path / "tiny")
    (tmp_path / "tiny/generation_config.json").write_text('{"chat_format": "chatml", "max_new_tokens": 7}')
    path, checkpoint = find_model(str(tmp_path / "tiny"))
    config = load_config(str(path), str(checkpoint))
    built, tokenizer = build_config(config), build_tokenizer(config)
    assert (built.num_layers, built.seq_length, built.train_seq_length, built.chat_format) == (3, 64, 64, "chatml")
    assert built.eos_token_id == [258, 257, 256] and type(tokenizer).__name__ == "ChatMLTokenizer"
    assert config.context.device_target == "CPU"


def test_a_quantized_one_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, _ = find_model(str(ROOT / "tests/data/gptq_int4"))
    assert yaml.safe_load(path.read_text())["model"]["model_config"]["quantization"]["bits"] == 4
    assert list((ROOT / "tests/data/gptq_int4").glob("*.yaml")) == []
