"""The main script, run as a user does: in a process of its own, from an empty directory; and its options."""
import json
import os
import shutil
import subprocess
import sys

import pytest

from helpers import ROOT
from qwen_mindspore.cli.predict import main, parse_args, read_prompts
from qwen_mindspore.text.chatml import make_context
from qwen_mindspore.text.tokenizer import QwenTokenizer

PROMPT = "Once upon a time"


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "research/qwen/run_qwen_7b.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def expected_answer(build_tiny, tokenizer, ids, new_tokens, skip):
    model = build_tiny(use_past=True, pad_token_id=256)
    out = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=[258, 257, 256])[0]
    return tokenizer.decode(out[skip:], skip_special_tokens=True)


@pytest.mark.process
def test_a_base_model_continues_each_prompt(tmp_path, tiny_yaml, tiny_checkpoint, tiny_hf, build_tiny):
    tokenizer = QwenTokenizer(str(tiny_hf))
    prompts = [PROMPT, "The"]
    result = run(tmp_path, "--config", tiny_yaml("raw"), "--run_mode", "predict", "--load_checkpoint",
                 tiny_checkpoint, "--max_new_tokens", 8, "--predict_data", *prompts)
    assert result.returncode == 0, result.stderr
    answers = [expected_answer(build_tiny, tokenizer, tokenizer.encode(prompt), 8, 0) for prompt in prompts]
    assert result.stdout == "".join(answer + "\n" for answer in answers)
    assert "tokens/s" in result.stderr


@pytest.mark.process
def test_a_chat_model_prints_only_its_reply(tmp_path, tiny_yaml, tiny_ckpt, tiny_hf, build_tiny):
    tokenizer = QwenTokenizer(str(tiny_hf))
    question = "Hi <|im_end|> there"
    ids = make_context(tokenizer, question)[1]
    result = run(tmp_path, "--config", tiny_yaml("chatml"), "--load_checkpoint", tiny_ckpt, "--device_target", "CPU",
                 "--device_id", 0, "--predict_length", len(ids) + 9, "--predict_data", question)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected_answer(build_tiny, tokenizer, ids, 9, len(ids)).strip() + "\n"


@pytest.mark.parametrize("arguments, said", [
    (["--load_checkpoint", "missing.ckpt"], "missing.ckpt: no such file"),
    ([], "no checkpoint: give --load_checkpoint"),
    (["--load_checkpoint", "CHECKPOINT", "--config", "missing.yaml"], "missing.yaml: no such file"),
    (["--load_checkpoint", "CHECKPOINT", "--device_target", "Ascend"], "finds no NPU here"),
    (["--load_checkpoint", "CHECKPOINT", "--predict_length", "5"], "max_length=5"),
    (["--load_checkpoint", "HF"], "Hugging Face names"),
])
def test_what_can_not_run_ends_in_one_clear_line(arguments, said, tiny_yaml, tiny_hf, tiny_checkpoint, capfd, tmp_path,
                                                 monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"CHECKPOINT": str(tiny_checkpoint), "HF": str(tiny_hf)}
    arguments = [names.get(argument, argument) for argument in arguments]
    if "--config" not in arguments:
        arguments += ["--config", tiny_yaml("raw")]
    assert main([*arguments, "--predict_data", PROMPT]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("run_qwen_7b: ") and said in last


@pytest.mark.parametrize("arguments", [
    ["--predict_length", "0"], ["--max_new_tokens", "-1"], ["--device_target", "GPU"], ["--run_mode", "dance"],
    ["--use_parallel", "perhaps"], ["--use_parallel", "True"],
])
def test_bad_options_are_refused_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args([*arguments, "--predict_data", PROMPT])
    assert error.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_prompts_come_from_arguments_and_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("你好\nhello\n", encoding="utf-8")
    assert read_prompts(["one", f"@{file}", "two"]) == ["one", "你好", "hello", "two"]
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        read_prompts(["one", " "])
    with pytest.raises(OSError, match="missing"):
        read_prompts(["@missing.txt"])
    with pytest.raises(ValueError, match="expected a list of prompts, found 'hello'"):
        read_prompts("hello")


def test_a_file_of_prompts_may_come_from_any_editor(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\u2028\r\ntwo\x0cmore\r\n\r\n".encode())
    assert read_prompts([f"@{file}"]) == ["one\u2028", "two\x0cmore"]


def test_a_prompt_may_begin_with_an_at():
    assert read_prompts(["@@home", "@@", "@@@x", "a@b"]) == ["@home", "@", "@@x", "a@b"]


@pytest.mark.parametrize("argument, said", [
    ("@gone.txt", "--predict_data @gone.txt: no such file: @ stands before the name of a file of prompts; a prompt "
                  "that begins with @ is written @@"),
    ("@.", "--predict_data @.: this is a folder"), ("@", "--predict_data @: this is a folder"),
    (os.fsdecode(b"caf\xe9"), "--predict_data: prompt 1: not UTF-8 (byte 3)"),
])
def test_a_prompt_that_can_not_be_read_is_explained(argument, said):
    with pytest.raises((ValueError, OSError)) as error:
        read_prompts([argument])
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_prompt_is_what_was_typed_whatever_the_locale():
    assert read_prompts([os.fsdecode("中文".encode())]) == ["中文"]


# Settings

@pytest.fixture
def ask(tiny_yaml, tiny_checkpoint, tmp_path, monkeypatch, capfd):
    """A function that gives the lines that are printed for prompts with options; settings of the YAML in the dict."""
    monkeypatch.chdir(tmp_path)

    def answers(prompts, *options, checkpoint=tiny_checkpoint, chat_format="raw", **settings):
        capfd.readouterr()
        code = main(["--config", tiny_yaml(chat_format, **settings), "--load_checkpoint", str(checkpoint),
                     *map(str, options), "--predict_data", *prompts])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out.removesuffix("\n").split("\n")
    return answers


SEVEN = ["Once upon a time", "The", "A", "I do not know what", "x", "The", "Where is it?"]


def test_seven_prompts_are_answered_four_at_once_as_each_is_alone(ask, monkeypatch):
    from qwen_mindspore.generate.loop import QwenForCausalLM
    sizes, decode = [], QwenForCausalLM.decode

    def counting(model, ids, *rest):
        sizes.append(len(ids))
        return decode(model, ids, *rest)

    alone = [ask([prompt], "--max_new_tokens", 8)[0] for prompt in SEVEN]
    monkeypatch.setattr(QwenForCausalLM, "decode", counting)
    assert ask(SEVEN, "--max_new_tokens", 8, batch_size=4) == alone
    assert max(sizes) == 4 and len(sizes) < 7 * 7


def test_a_control_token_is_a_prompt(ask, build_tiny, tiny_hf):
    """Also the one that the tokenizer pads with."""
    tokenizer = QwenTokenizer(str(tiny_hf))
    expected = [expected_answer(build_tiny, tokenizer, ids, 9, 0) for ids in ([256], [256, 65], [*b"Hi", 256])]
    prompts = ["<|endoftext|>", "<|endoftext|>A", "Hi<|endoftext|>"]
    assert ask(prompts, "--max_new_tokens", 9) == ask(prompts, "--max_new_tokens", 9, batch_size=3) == expected


def test_the_generation_config_beside_the_checkpoint_is_read(ask, tiny_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 30, "repetition_penalty": 5.0}))
    given = ask(["Once"], "--max_new_tokens", 30, "--repetition_penalty", 5)
    assert ask(["Once"], checkpoint=folder) == given != ask(["Once"], "--max_new_tokens", 30)
    assert ask(["Once"], "--predict_length", 16, checkpoint=folder) == ask(["Once"], "--max_new_tokens", 12,
                                                                        "--repetition_penalty", 5)
    assert ask(["Once"], "--repetition_penalty", 1, checkpoint=folder) == ask(["Once"], "--max_new_tokens", 30)


def test_the_options_of_generation_are_those_of_other_commands(ask):
    drawn = ["--do_sample", "true", "--temperature", 3, "--max_new_tokens", 12]
    first, second = (ask(["Once", "Once"], *drawn, "--seed", 1) for _ in range(2))
    assert first == second and first[0] != first[1], "each prompt draws for itself"
    assert ask(["Once", "Once"], *drawn, "--seed", 2) != first
    greedy = ask(["Once"], "--max_new_tokens", 12)
    assert ask(["Once"], *drawn, "--top_k", 1) == ask(["Once"], *drawn, "--top_p", 1e-9) == greedy
    assert ask(["Once"], "--do_sample", "true", "--temperature", 0, "--max_new_tokens", 12) == greedy
    text = greedy[0]
    assert ask(["Once"], "--max_new_tokens", 12, "--stop_words", text[6:8]) == [text[:text.index(text[6:8], 4)]]


def test_a_chat_model_answers_with_the_tokenizers_system_message(ask, tiny_checkpoint, build_tiny, tiny_hf):
    tokenizer = QwenTokenizer(str(tiny_hf))
    ids = make_context(tokenizer, "Hi")[1]
    assert ask(["Hi"], "--max_new_tokens", 9, chat_format="chatml") == [
        expected_answer(build_tiny, tokenizer, ids, 9, len(ids)).strip()]


@pytest.mark.parametrize("options, said", [
    (["--top_p", "3"], "top_p: expected a number above 0 and up to 1"), (["--top_k", "-1"], "write 0 to switch it off"),
    (["--temperature", "nan"], "temperature: expected a number above 0, found nan"),
    (["--seed", "-1"], "seed: expected an integer from 0 to 2"), (["--predict_length", "2"], "prompt 1 has 4 tokens")])
def test_a_setting_out_of_range_is_refused_by_name(options, said, tiny_yaml, tiny_checkpoint, capfd):
    assert main(["--config", tiny_yaml("raw"), "--load_checkpoint", str(tiny_checkpoint), *options, "--predict_data",
                 "Once"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and said in err.strip().splitlines()[-1]
