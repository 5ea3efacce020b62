"""What a value that is written by hand is taken for, and which is refused."""
import numpy as np
import pytest

from qwen_mindspore.common.keys import SECTIONS, read_config_json, read_sections
from qwen_mindspore.common.kinds import (
    CHAT_FORMAT,
    COUNT,
    DTYPE,
    FLAG,
    INTEGER,
    NUMBER,
    PATH,
    TEXTS,
    choice,
    one_of,
    optional,
    read_as,
    section,
)


@pytest.mark.parametrize("kind, value, meant", [
    (FLAG, "False", False), (FLAG, "no", False), (FLAG, "1", True), (FLAG, np.bool_(False), False),
    (COUNT, "8192", 8192), (COUNT, 4.0, 4), (COUNT, "4.0", 4), (COUNT, "1e3", 1000), (COUNT, np.int64(7), 7),
    (COUNT, np.float32(7), 7), (INTEGER, "-1", -1), (INTEGER, "+5", 5),
    (NUMBER, "1e-5", 1e-5), (NUMBER, " .5 ", 0.5), (NUMBER, 3, 3), (NUMBER, "3", 3.0),
    (DTYPE, "fp16", "float16"), (DTYPE, "BF16", "bfloat16"), (DTYPE, "torch.float32", "float32"),
    (CHAT_FORMAT, " ChatML", "chatml"), (TEXTS, "a", ["a"]), (optional(COUNT), None, None),
    (one_of(choice("CPU"), COUNT), "cpu", "CPU"), (one_of(choice("CPU"), COUNT), "2", 2),
])
def test_what_can_mean_one_thing_is_taken_for_it(kind, value, meant):
    found = read_as(kind, "key", value)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize("kind, value", [
    (FLAG, "perhaps"), (FLAG, 2), (FLAG, None), (FLAG, "None"), (FLAG, np.array([0, 1])), (FLAG, float("nan")),
    (COUNT, 0), (COUNT, "0"), (COUNT, -3), (COUNT, 1.5), (COUNT, "0x10"), (COUNT, "1,000"), (COUNT, ""), (COUNT, True),
    (COUNT, "5_0"), (NUMBER, "1_0.5"), (COUNT, "010"), (INTEGER, "\u0663"),
    (COUNT, float("nan")), (COUNT, "inf"), (COUNT, 2**31), (COUNT, [4]), (COUNT, {}), (COUNT, b"4"), (COUNT, 4 + 0j),
    (COUNT, "9" * 5000), (NUMBER, "1e400"), (NUMBER, "nan"), (NUMBER, "five"), (NUMBER, False), (NUMBER, 10**400),
    (DTYPE, "GPU"), (DTYPE, 16), (CHAT_FORMAT, "chatlm"), (CHAT_FORMAT, None), (PATH, "a\0b"), (PATH, b"x"), (PATH, 7),
])
def test_anything_else_is_refused_by_name(kind, value):
    with pytest.raises(ValueError, match=f"^key: expected {kind.expected}, found "):
        read_as(kind, "key", value)


def test_a_value_within_a_section_is_named_with_the_way_to_it():
    with pytest.raises(ValueError, match="^a: b: c: expected true or false, found 3$"):
        read_as(section({"b": section({"c": FLAG})}), "a", {"b": {"c": 3}})


def test_a_yamls_sections_are_read_as_they_are_meant_and_what_is_not_known_is_left_alone():
    values = {"use_parallel": "False", "seed": "0", "load_checkpoint": "", "unknown": {"any": "thing"},
              "context": {"device_target": "cpu", "device_id": "1", "mode": 0, "max_device_memory": "28gb", "other": 1},
              "parallel": {"full_batch": "true", "parallel_mode": "1"}, "runner_config": {"sink_mode": "no"},
              "processor": {"tokenizer": {"model_max_length": "2048", "vocab_file": None}}, "trainer": None}
    assert read_sections(values, "y") == {
        "use_parallel": False, "seed": 0, "load_checkpoint": "", "unknown": {"any": "thing"},
        "context": {"device_target": "CPU", "device_id": 1, "mode": 0, "max_device_memory": "28GB", "other": 1},
        "parallel": {"full_batch": True, "parallel_mode": 1}, "runner_config": {"sink_mode": False},
        "processor": {"tokenizer": {"model_max_length": 2048, "vocab_file": None}}, "trainer": None}


@pytest.mark.parametrize("values, said", [
    ({"context": {"device_target": "GPU"}}, "y: context: device_target: expected auto, CPU, Ascend or None, found"),
    ({"context": []}, "y: context: expected a section of keys or None, found \\[\\]"),
    ({"context": {"max_device_memory": "much"}}, "y: context: max_device_memory: expected a size as 28GB or None"),
    ({"context": {"mode": "EAGER"}}, "y: context: mode: expected GRAPH_MODE, PYNATIVE_MODE or 0, 1 or None, found"),
    ({"use_parallel": "perhaps"}, "y: use_parallel: expected true or false or None, found 'perhaps'"),
    ({"load_ckpt_format": "bin"}, "y: load_ckpt_format: expected ckpt, safetensors or None, found 'bin'"),
    ({"processor": {"tokenizer": {"model_max_length": "long"}}}, "y: processor: tokenizer: model_max_length: expected"),
    ({"output_dir": 7}, "y: output_dir: expected a path or None, found 7"),
])
def test_a_wrong_value_of_a_section_is_refused_by_name(values, said):
    with pytest.raises(ValueError, match=said):
        read_sections(values, "y")


def test_every_section_that_is_known_may_say_nothing():
    assert read_sections(dict.fromkeys(SECTIONS), "y") == dict.fromkeys(SECTIONS)


def test_a_config_json_is_read_as_it_is_meant_under_either_name():
    values = {"num_hidden_layers": "3", "layer_norm_epsilon": "1e-5", "tie_word_embeddings": "False", "bf16": "true",
              "seq_length": None, "id2label": {"0": "x"}, "torch_dtype": "auto"}
    assert read_config_json(values, "c") == {**values, "num_hidden_layers": 3, "layer_norm_epsilon": 1e-5,
                                             "tie_word_embeddings": False, "bf16": True}
    with pytest.raises(ValueError, match="c: tie_word_embeddings: expected true or false, found 'maybe'"):
        read_config_json({"tie_word_embeddings": "maybe"}, "c")
