"""
Whatever a configuration says, it gives a config or one line that names the key; never a traceback of another kind.
"""
import json
import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import ROOT, TINY
from helpers.properties import tried
from qwen_mindspore.checkpoint.files import read_config as read_config_json_file
from qwen_mindspore.checkpoint.packing import Quantization
from qwen_mindspore.common.configs import read_config, read_model_config
from qwen_mindspore.common.keys import MODEL, QWEN_NAMES, SECTIONS
from qwen_mindspore.families import family_of
from qwen_mindspore.generate.build import load_config
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.config_keys import KINDS

EXAMPLES = 150

WORDS = ["False", "true", "off", "", " ", "1e-5", "4.0", "0", "-1", "nan", "inf", "1e999", "0x10", "1_0", "fp16",
         "bf16", "float16", "GPU", "ChatML", "raw", "null", "None", "int8", "\0", "\ud800", "\u2028", "中", "a" * 300,
         "9" * 5000]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.integers(), st.sampled_from([2**31, 2**63, 10**400, -1, 0]),
    st.floats(), st.sampled_from([1e-300, 1e308, -0.0, 4.0, math.nan, math.inf]), st.sampled_from(WORDS),
    st.text(max_size=8), st.dates())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=4)
NAMES = st.sampled_from(sorted({*KINDS, *QWEN_NAMES, "quantization", "type", "zzz", "model_type"}))
MODEL_NAMES = st.sampled_from(sorted({*MODEL, *QWEN_NAMES}))
SMALL = json.loads((TINY / "config.json").read_text())


def one_line(error, *names):
    """Whether an error is a line that names one of the keys."""
    text = str(error)
    return "\n" not in text and len(text) < 2000 and (not names or any(str(name) in text for name in names))


def alike(values):
    """The names of settings and of those that they may contradict."""
    both = {**QWEN_NAMES, **{ours: theirs for theirs, ours in QWEN_NAMES.items()}}
    return {*values, *(both.get(name, name) for name in values)} | {"bits", "group_size", "train_seq_length"}


@tried(EXAMPLES)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
@example({"max_position_embedding": None})
@example({"softmax_compute_type": None})
@example({"num_layers": 2, "num_hidden_layers": "2"})
@example({"quantization": {"bits": 4, "group_size": 32, "quantized": "x"}, "tie_word_embeddings": "true"})
def test_any_settings_give_a_config_or_a_line_that_names_the_key(values):
    try:
        config = QwenConfig(**values)
    except ValueError as error:
        assert one_line(error, *alike(values)), error
        return
    for name in MODEL.keys() & values.keys():
        if name not in ("max_new_tokens", "max_length", "ffn_hidden_size"):
            assert getattr(config, name, None) == getattr(QwenConfig(**{**values, name: getattr(config, name)}), name)
    assert QwenConfig(**config.to_dict()) == config
    Quantization.from_dict(config.quantization)


def sizes_of(path):
    config = read_config_json_file(path)
    return family_of(config).sizes(config)


@tried(EXAMPLES)
@example({"model_type": []})
@example({"torch_dtype": True})
@given(st.dictionaries(MODEL_NAMES | st.sampled_from(["bf16", "fp16", "fp32", "torch_dtype", "model_type", "zzz"]),
                       VALUES.filter(lambda value: "date" not in str(type(value))), max_size=3))
def test_any_config_json_gives_a_config_or_a_line_that_names_file_and_key(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "property.json"
    path.write_text(json.dumps({**SMALL, **values}, default=str), encoding="utf-8")
    for read in (QwenConfig.from_hf_config, sizes_of):
        try:
            read(path)
        except ValueError as error:
            assert one_line(error, *alike(values)), error


@tried(EXAMPLES)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"\xef\xbb\xbf{}")
@example(b"a: &a [*a]\n")
@example(b"a: {<<: 1}\n")
@example(b"base_config: \x00\n")
@example(b'base_config: "a\\0b"\n')
@example(b"a: 0x_\n")
@example(b"a: 1:99:b\n")
@example(b"a: !!int x\n")
@example(b"a: !!binary \xc3\xa9\n")
@example(b"a: !!timestamp x\n")
def test_any_bytes_are_a_yaml_or_a_line_that_names_the_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "property.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_config(path), dict)
    except (ValueError, FileNotFoundError) as error:
        assert one_line(error, path), error


def merged(content, changes):
    for way, value in changes.items():
        *sections, key = way
        place = content
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[key] = value
    return content


def ways(table, before=()):
    """The ways to all keys of a table of sections, sections among them."""
    found = []
    for key, kind in table.items():
        found.append((*before, key))
        inner = INNER.get((*before, key))
        found += ways(dict.fromkeys(inner), (*before, key)) if inner else []
    return found


INNER = {("context",): ("mode", "device_target", "device_id", "max_device_memory", "ascend_config"),
         ("processor",): ("type", "return_tensors", "tokenizer"), ("trainer",): ("type", "model_name"),
         ("processor", "tokenizer"): ("type", "vocab_file", "model_max_length", "pad_token"),
         ("parallel",): ("parallel_mode", "full_batch"), ("runner_config",): ("batch_size", "sink_mode"),
         ("parallel_config",): ("model_parallel", "vocab_emb_dp")}
WAYS = st.sampled_from([*ways(SECTIONS), ("model",), ("model", "model_config"), ("model", "arch"),
                        ("model", "arch", "type"), ("model", "model_config", "type"), ("zzz",), ("model", "zzz")])
MODEL_WAYS = MODEL_NAMES.map(lambda name: ("model", "model_config", name))


@pytest.fixture(scope="module")
def demo():
    return yaml.safe_dump(read_config(ROOT / "configs/predict_qwen_demo.yaml"))


@tried(EXAMPLES)
@given(st.dictionaries(WAYS | MODEL_WAYS, VALUES, max_size=3), st.sampled_from(["QwenConfig", "LlamaConfig"]))
def test_any_yaml_of_a_model_is_read_or_a_line_names_file_and_key(tmp_path_factory, demo, tiny_ckpt, changes, kind):
    content = yaml.safe_load(demo)
    content["model"]["model_config"]["type"] = kind
    path = tmp_path_factory.getbasetemp() / "property_model.yaml"
    try:
        path.write_text(yaml.safe_dump(merged(content, changes), allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        return  # nobody can write such a file
    names = alike([key for way in changes for key in way])
    try:
        read_model_config(path)
        config = load_config(str(path), str(tiny_ckpt), "CPU")
        assert config.model.model_config.checkpoint_name_or_path == str(tiny_ckpt)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error) and one_line(error, *names), error
