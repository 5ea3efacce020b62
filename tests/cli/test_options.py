"""
What the programs share: the YAML with the command line in it, the device, the options, and a clean standard output.
"""
import argparse
import os
import subprocess
import sys

import pytest
from mindformers.models.llama import LlamaConfig

from helpers import ROOT
from qwen_mindspore.cli.options import add_common_options, add_generation_options, config_of, generation_options
from qwen_mindspore.generate.build import build_config, build_tokenizer, resolve_device
from qwen_mindspore.model.config import QwenConfig


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_common_options(parser, "predict_qwen_7b.yaml")
    add_generation_options(parser)
    return parser.parse_args(arguments)


def test_the_command_line_wins_over_the_yaml(tiny_yaml, tiny_ckpt):
    args = parse("--config", tiny_yaml("raw"), "--load_checkpoint", str(tiny_ckpt), "--device_id", "3")
    config = config_of(args)
    assert config.model.model_config.checkpoint_name_or_path == str(tiny_ckpt)
    assert (config.context.device_id, config.context.device_target) == (3, "CPU")


@pytest.mark.parametrize("text, said", [
    ("base_config: gone.yaml\n", "own.yaml: base_config: .*gone.yaml: no such file"),
    ("model: [\n", "own.yaml: not valid YAML"),
    ("model: {}\n", "own.yaml: expected a section model with model_config"),
    ("model: {model_config: {type: QwenConfig}}\n", "own.yaml: expected a section processor with tokenizer"),
])
def test_a_yaml_that_is_none_of_a_model_is_refused_in_one_line(text, said, tmp_path, tiny_ckpt):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        config_of(parse("--config", str(tmp_path / "own.yaml"), "--load_checkpoint", str(tiny_ckpt)))


def test_a_yaml_may_inherit_from_a_shipped_one(tmp_path, tiny_ckpt):
    (tmp_path / "own.yaml").write_text(f"base_config: {ROOT}/configs/predict_qwen_demo.yaml\n"
                                       "model: {model_config: {batch_size: 3}}\n")
    config = config_of(parse("--config", str(tmp_path / "own.yaml"), "--load_checkpoint", str(tiny_ckpt)))
    assert (config.model.model_config.batch_size, config.model.model_config.hidden_size) == (3, 576)


def test_auto_is_the_cpu_where_there_is_no_npu():
    assert resolve_device("auto") == resolve_device("CPU") == "CPU"


def test_generation_options_are_settings_and_none_where_not_given():
    given = generation_options(parse("--top_p", "0.5", "--do_sample", "true", "--stop_words", "a", "b c",
                                     "--seed", "7"))
    assert given == {"top_p": 0.5, "do_sample": True, "stop_words": ["a", "b c"], "seed": 7, **dict.fromkeys((
        "max_new_tokens", "min_new_tokens", "temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "max_window_size", "chat_format"))}


@pytest.mark.parametrize("arguments, said", [(["--max_new_tokens", "0"], "expected a positive number, found 0"),
                                             (["--do_sample", "perhaps"], "expected true or false, found perhaps"),
                                             (["--temperature", "hot"], "invalid float value: 'hot'")])
def test_a_bad_option_is_refused_at_once(arguments, said, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert f"{arguments[0]}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [QwenConfig, LlamaConfig])
def test_the_models_config_is_of_the_yamls_type(tiny_yaml, tiny_ckpt, kind):
    config = config_of(parse("--config", tiny_yaml("raw", type=kind.__name__), "--load_checkpoint", str(tiny_ckpt)))
    assert type(build_config(config)) is kind


@pytest.mark.parametrize("chat_format, name", [("raw", "QwenTokenizer"), ("chatml", "ChatMLTokenizer")])
def test_the_tokenizer_has_the_vocabulary_beside_the_checkpoint(tiny_yaml, tiny_ckpt, chat_format, name):
    config = config_of(parse("--config", tiny_yaml(chat_format), "--load_checkpoint", str(tiny_ckpt)))
    tokenizer = build_tokenizer(config)
    assert (type(tokenizer).__name__, tokenizer.eod_id) == (name, 256)


def test_a_chat_format_is_known_in_whatever_case(tiny_yaml, tiny_ckpt):
    config = config_of(parse("--config", tiny_yaml("ChatML"), "--load_checkpoint", str(tiny_ckpt)))
    assert type(build_tokenizer(config)).__name__ == "ChatMLTokenizer"
    assert build_config(config).chat_format == "chatml"
    assert generation_options(parse("--chat_format", "ChatML"))["chat_format"] == "chatml"
    with pytest.raises(ValueError, match="tiny.yaml: model_config: chat_format: expected raw, chatml or None, found"):
        config_of(parse("--config", tiny_yaml("chatlm"), "--load_checkpoint", str(tiny_ckpt)))


def test_a_text_that_is_not_utf8_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--stop_words", os.fsdecode(b"caf\xe9"))
    assert "--stop_words: not UTF-8 (byte 3)" in capsys.readouterr().err


def test_what_a_yaml_says_of_the_model_is_checked_before_anything_is_built(tiny_yaml, tiny_ckpt):
    for settings, said in (({"hidden_size": 65, "kv_channels": None}, "hidden_size: 65 is not a multiple of the 4 "),
                           ({"hiden_size": 65}, "hiden_size: no such key of a QwenConfig; did you mean hidden_size"),
                           ({"seq_length": 10**9}, "seq_length: 1000000000 is more than the model's max_position")):
        with pytest.raises(ValueError, match=f"tiny.yaml: model_config: {said}"):
            config_of(parse("--config", tiny_yaml("raw", **settings), "--load_checkpoint", str(tiny_ckpt)))


def test_a_config_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"--config {tmp_path}: this is a folder; the shipped ones are in"):
        config_of(parse("--config", str(tmp_path)))


@pytest.mark.process
def test_standard_output_has_answers_and_nothing_else():
    code = """
import os, sys
from qwen_mindspore.cli.command import stdout_for_answers
with stdout_for_answers(verbose=False) as answers:
    print("log of python")
    os.write(1, b"log of C++")
    print("answer", file=answers)
print("behind")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("answer\nbehind\n", "log of C++")
