"""YAMLs that inherit: merged as MindFormers merges them, and what is wrong with them said in one line."""
import sys

import pytest
from mindformers.tools.register.config import MindFormerConfig

from helpers import ROOT
from qwen_mindspore.common.configs import read_config, read_model_config

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_yaml_is_what_mindformers_makes_of_it(path):
    ours, theirs = read_config(path), MindFormerConfig(str(path)).to_dict()
    for section in ("model", "processor"):
        assert ours[section] == theirs[section]


def test_dicts_are_merged_and_anything_else_is_replaced(tmp_path):
    path = write(tmp_path, own="base_config: base.yaml\na: {x: 1}\nb: [1]\nd: {e: 1}\n",
                 base="base_config: [oldest.yaml]\na: {x: 0, y: 0}\nb: [2, 3]\nc: 4\nd: 5\n", oldest="a: {z: 7}\n")
    assert read_config(path) == {"a": {"x": 1, "y": 0, "z": 7}, "b": [1], "c": 4, "d": {"e": 1}}


def test_a_base_is_relative_to_its_yaml_wherever_the_process_is(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    path = write(tmp_path, own="base_config: base/base.yaml\n")
    write(tmp_path / "base", base="base_config: ../oldest.yaml\n")
    write(tmp_path, oldest="a: 1\n")
    monkeypatch.chdir("/")
    assert read_config(str(path)) == {"a": 1}


def test_of_two_bases_the_later_ones_sections_are_taken(tmp_path):
    path = write(tmp_path, own="base_config: [one.yaml, two.yaml]\nmodel: {z: 3}\n", one="model: {x: 1}\nn: 1\n",
                 two="model: {y: 2}\n")
    assert read_config(path) == {"model": {"y": 2, "z": 3}, "n": 1}
    assert read_config(path) == MindFormerConfig._file2dict(str(path))


@pytest.mark.parametrize("files, said", [
    ({"own": "base_config: gone.yaml\n"}, "own.yaml: base_config: .*gone.yaml: no such file; .*copy the base as well"),
    ({"own": "base_config: [7]\n"}, "own.yaml: base_config: expected the path of a YAML or a list of them, found 7"),
    ({"own": "base_config: two.yaml\n", "two": "base_config: own.yaml\n"}, "two.yaml: base_config: .*own.yaml inh"),
    ({"own": "a: [1\n"}, "own.yaml: not valid YAML"),
    ({"own": "base_config: two.yaml\n", "two": "\xff: {\n"}, "two.yaml: not valid YAML"),
    ({"own": ""}, "own.yaml: expected a YAML of sections, found NoneType"),
    ({"own": "- 1\n"}, "own.yaml: expected a YAML of sections, found list"),
    ({"own": "base_config: own.yaml\n"}, "own.yaml: base_config: .*own.yaml inherits from this file"),
    ({"own": "base_config: .\n"}, "own.yaml: base_config: .*: this is a folder; a path there"),
    ({"own": "base_config: {a: b}\n"}, "own.yaml: base_config: expected the path of a YAML or a list of them"),
    ({"own": "a: &a {b: *a}\n"}, "own.yaml: a: expected sections, found more than 64 in each other"),
    ({"own": "a: !!python/object:x {}\n"}, "own.yaml: not valid YAML: could not determine a constructor"),
    ({"own": "a: 2023-13-01\n"}, "own.yaml: not valid YAML: month must be in 1..12"),
    ({"own": "a: {7: b}\n"}, "own.yaml: a.7: expected a text as a key"),
    ({"own": "~: b\n"}, "own.yaml: None: expected a text as a key"),
    ({"own": "? [a]\n: b\n"}, "own.yaml: not valid YAML: .*unhashable key"),
])
def test_what_is_wrong_is_said_with_the_file(files, said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_config(write(tmp_path, **files))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.yaml: no such file"):
        read_config(tmp_path / "gone.yaml")


def test_a_byte_order_mark_is_no_part_of_a_yaml_and_another_encoding_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("base_config: base.yaml\n", encoding="utf-8-sig")
    (tmp_path / "base.yaml").write_text("a: 1\r\nb: 2\r\n", encoding="utf-8-sig")
    assert read_config(tmp_path / "own.yaml") == {"a": 1, "b": 2}
    (tmp_path / "base.yaml").write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(ValueError, match="base.yaml: not valid YAML: expected UTF-8, found UTF-16: save it as UTF-8"):
        read_config(tmp_path / "own.yaml")


def test_a_base_that_says_nothing_is_none(tmp_path):
    assert read_config(write(tmp_path, own="base_config:\na: 1\n")) == {"a": 1}


BASE = f"base_config: {ROOT}/configs/predict_qwen_demo.yaml\n"


def test_the_yaml_of_a_model_is_read_as_it_is_meant(tmp_path):
    path = write(tmp_path, own=BASE + "use_parallel: 'False'\ncontext: {device_target: cpu}\n"
                 "model: {model_config: {layer_norm_epsilon: 1e-5, use_dynamic_ntk: 'False', compute_dtype: fp16}}\n")
    content = read_model_config(path)
    assert (content["use_parallel"], content["context"]["device_target"]) == (False, "CPU")
    model = content["model"]["model_config"]
    assert (model["layer_norm_epsilon"], model["use_dynamic_ntk"], model["compute_dtype"]) == (1e-5, False, "float16")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_yaml_means_what_it_says(path):
    assert read_model_config(path) == read_config(path)


@pytest.mark.parametrize("text, said", [
    ("", "own.yaml: expected a YAML of sections, found NoneType"),
    ("model: 7\n", "own.yaml: expected a section model with model_config"),
    ("model: {model_config: }\n", "own.yaml: expected a section model with model_config"),
    ("model: {model_config: {}}\nprocessor: []\n", "own.yaml: expected a section processor with tokenizer"),
    (BASE + "model: {arch: {type: GPT2Model}}\n", "own.yaml: model.arch.type: expected QwenForCausalLM, found 'GPT2"),
    (BASE + "model: {arch: [1]}\n", "own.yaml: model.arch.type: expected QwenForCausalLM, found \\[1\\]"),
    (BASE + "model: {model_config: {type: GPT2Config}}\n",
     "own.yaml: model.model_config.type: expected QwenConfig or LlamaConfig, found 'GPT2Config'"),
    (BASE + "model: {model_config: {type: }}\n", "own.yaml: model.model_config.type: expected .*, found None"),
    (BASE + "model: {model_config: {hidden_size: -1}}\n",
     "own.yaml: model_config: hidden_size: expected a positive integer, found -1"),
    (BASE + "context: {device_target: GPU}\n", "own.yaml: context: device_target: expected auto, CPU, Ascend or None"),
])
def test_the_yaml_of_no_model_is_refused_by_name(text, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        read_model_config(write(tmp_path, own=text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: !!timestamp x", "a: !!int x", "a: !!bool x", "a: !!float x", "a: 2001-99-99",
                                  "a: !!binary x", "a: !!omap x", "a: !!python/name:os.system", "? [a]: b", "\x00",
                                  "a: &b"])
def test_whatever_yaml_stumbles_over_is_one_line_with_the_file(text, tmp_path):
    path = write(tmp_path, own=text)
    try:
        read_config(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: not ") and str(error).isprintable()
    else:
        assert text == "a: &b"


def test_what_is_nested_without_end_is_one_line_with_the_file(tmp_path):
    path, limit = write(tmp_path, own="a: " + "[" * 800), sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # MindFormers raises it, and PyYAML's time grows with the square of the depth
    try:
        with pytest.raises(ValueError, match="own.yaml: not valid YAML: maximum recursion depth exceeded") as error:
            read_config(path)
    finally:
        sys.setrecursionlimit(limit)
    assert str(error.value).isprintable()


def test_an_alias_inside_what_it_stands_for_has_an_end(tmp_path):
    path = write(tmp_path, own="base_config: base.yaml\na: &a {b: *a}\n", base="a: &a {b: *a}\n")
    with pytest.raises(ValueError, match="own.yaml: a: expected sections, found more than 64"):
        read_config(path)


def test_a_base_with_a_line_end_in_its_name_is_shown_in_one_line(tmp_path):
    path = write(tmp_path, own='base_config: "a\\nb.yaml"')
    with pytest.raises(ValueError, match=r"base_config: expected the path of a YAML .*, found 'a\\nb.yaml'"):
        read_config(path)


def test_a_key_that_is_there_twice_with_another_value_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model:\n  temperature: 0.5\n  top_k: 1\n  temperature: 0.9\n")
    with pytest.raises(ValueError, match=r"a.yaml: not valid YAML: line 4: temperature is there twice, with another"):
        read_config(path)
    path.write_text("model: {}\ntrainer: {a: 1}\nmodel: {b: 1}\n")
    with pytest.raises(ValueError, match="line 3: model is there twice"):
        read_config(path)


def test_what_a_merge_brings_in_may_be_said_again(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: {z: 1, z: 1}\n")
    assert read_config(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}, "d": {"z": 1}}
