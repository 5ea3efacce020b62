"""The script as a whole: killed and started again, its settings, its errors, its signals."""
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from helpers import ROOT
from helpers.batch import FakeEngine
from qwen_mindspore.batch import assemble, run
from qwen_mindspore.batch import journal as batch_journal
from qwen_mindspore.batch.assemble import checkpoint_digest
from qwen_mindspore.batch.journal import Journal
from qwen_mindspore.batch.worker import Worker
from qwen_mindspore.cli.batch import main, parse_args
from qwen_mindspore.generate.build import build_tokenizer

PROMPTS = [f"row {i} " + "0123456789abcdef"[:i % 16] for i in range(30)]
BAD = {4: "no JSON", 11: '{"prompt": ""}', 12: json.dumps({"prompt": "x" * 300}), 30: '{"text": 1}'}


@pytest.fixture
def work(tmp_path, tiny_yaml, tiny_checkpoint, monkeypatch):
    """A function that gives the arguments for an input, which it writes as JSONL, and an output."""
    monkeypatch.chdir(tmp_path)
    yaml_file = tiny_yaml("raw")
    (tmp_path / "in.jsonl").write_text("".join(
        f"{BAD.get(number) or json.dumps({'prompt': prompt, 'id': f'{number}'})}\n"
        for number, prompt in enumerate(PROMPTS, 1)))

    def arguments(*more, out="out.jsonl"):
        return ["--config", yaml_file, "--load_checkpoint", str(tiny_checkpoint), "--input", "in.jsonl",
                "--output", out, *map(str, more)]
    return arguments


@pytest.fixture
def fake(monkeypatch):
    """A function that puts the quick engine in the model's place; it works at a pace of its own, not to say order."""
    def set_pace(pace):
        def build(args, config):
            engine = FakeEngine(pace=pace, max_batch=args.batch_size)
            return Worker(engine, build_tokenizer(config), assemble.load_settings(args, config),
                          assemble.row_options(args))
        monkeypatch.setattr(run, "build_worker", build)
    set_pace(0)
    return set_pace


def outputs(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("out")}


def test_answers_in_order_and_bad_rows_aside(work, fake, tmp_path, capfd):
    assert main(work()) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 31) if number not in BAD]
    assert rows[5] == {"id": "7", "prompt": "row 6 012345", "response": "543210 6 w", "prompt_tokens": 12,
                       "completion_tokens": 11, "finish_reason": "stop"}
    errors = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert [error["row"] for error in errors] == list(BAD) and errors[0]["input"] == "no JSON"
    out, err = capfd.readouterr()
    assert out == ""
    for said in ("line 4: invalid JSON", "line 11: prompt is empty", "line 12: the prompt has 300 tokens",
                 "line 30: no prompt or messages or query, found text", "30/30", "tokens/s",
                 "26 rows answered, 4 could not be: see out.jsonl.errors.jsonl"):
        assert said in err


def test_killed_at_any_write_of_a_row_it_goes_on_where_it_was(work, fake, tmp_path, monkeypatch):
    arguments = work("--do_sample", "true", "--seed", 3)
    assert main([*arguments]) == 0
    expected = outputs(tmp_path)
    assert len(set(expected["out.jsonl"].splitlines())) == 26
    kills = random.Random(0)
    write = os.write

    class Kill(BaseException):
        pass

    for _ in range(6):
        for name in expected:
            (tmp_path / name).unlink()
        for attempt in itertools.count():
            left = [kills.randrange(1, 12)]

            def dying(file, data, left=left):
                left[0] -= 1
                if left[0] == 0:
                    write(file, data[:kills.randrange(len(data) + 1)])
                    raise Kill
                return write(file, data)

            fake(attempt)
            with monkeypatch.context() as patch, contextlib.suppress(Kill):
                patch.setattr(batch_journal.os, "write", dying)
                patch.setattr(Journal, "close", lambda journal: os.close(journal._file))
                assert main([*arguments, "--batch_size", str(kills.randrange(1, 9))]) == 0
                break
        assert attempt > 1 and outputs(tmp_path) == expected


def test_the_same_command_again_has_nothing_to_do_and_another_is_refused(work, fake, tmp_path, capfd):
    assert main(work()) == 0
    expected = outputs(tmp_path)
    assert main(work("--batch_size", 3)) == 0 and outputs(tmp_path) == expected
    assert "out.jsonl is complete" in capfd.readouterr().err
    for change, said in ((["--temperature", "0.5"], "settings.temperature was 1.0, is 0.5 now"),
                         (["--id_column", "key"], "rows_are_read.id_column was 'id', is 'key' now")):
        assert main(work(*change)) == 1
        assert said in capfd.readouterr().err and outputs(tmp_path) == expected
    with open(tmp_path / "in.jsonl", "a", encoding="utf-8") as file:
        file.write('{"prompt": "one more"}\n')
    assert main(work()) == 1 and "input.sha256 was" in capfd.readouterr().err
    assert main(work("--overwrite")) == 0 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 27


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_between_two_steps_with_what_is_done_kept(work, fake, tmp_path, monkeypatch, capfd, number):
    add, added = Journal.add, itertools.count(1)

    def add_and_signal(journal, *row):
        add(journal, *row)
        if next(added) == 9:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_and_signal)
        assert main(work()) == 130
    err = capfd.readouterr().err
    assert "the same command resumes here" in err and not (tmp_path / "out.jsonl").exists()
    assert main(work()) == 0
    assert re.search("resuming behind (9|10) of 30 rows", capfd.readouterr().err), "one step may bring several"
    again = outputs(tmp_path)
    assert main(work("--overwrite")) == 0 and outputs(tmp_path) == again


@pytest.mark.parametrize("arguments, said", [
    (["--input", "missing.jsonl"], "missing.jsonl: no such file"),
    (["--output", "in.jsonl"], "in.jsonl: this is the input"),
    (["--output", "."], "--output .: this is a folder: name a file in it"),
    (["--output", ".", "--overwrite"], "this is a folder"),
    (["--cache_tokens", "255"], "--cache_tokens: expected at least seq_length, 256"),
    (["--top_p", "3"], "top_p: expected a number above 0 and up to 1"),
    (["--chat_format", "chatml", "--parse_special"], "--parse_special: this is a chat model"),
    (["--load_checkpoint", "missing"], "missing: no such file or folder"),
    (["--input_format", "json"], "in.jsonl: expected a JSON array"),
])
def test_what_can_not_be_done_ends_in_one_line_before_anything_is_written(work, fake, tmp_path, capfd, arguments, said):
    assert main(work(*arguments)) == 1
    out, err = capfd.readouterr()
    last = err.strip().splitlines()[-1]
    assert out == "" and last.startswith("batch_generate: ") and said in last
    assert set(os.listdir(tmp_path)) == {"in.jsonl"}


@pytest.mark.parametrize("arguments", [["--batch_size", "0"], ["--max_new_tokens", "x"], ["--do_sample", "perhaps"],
                                       ["--ray_actors", "-1"], ["--ray_resources", "NPU"], ["--input_format", "xml"]])
def test_bad_options_are_refused_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(["--input", "a", "--output", "b", *arguments])
    assert error.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_every_row_bad_is_an_exit_code_of_its_own(work, fake, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert main(work()) == 1 and (tmp_path / "out.jsonl").read_text() == ""
    (tmp_path / "in.jsonl").write_text("")
    assert main(work(out="out2.jsonl")) == 0 and (tmp_path / "out2.jsonl").read_text() == ""


def test_without_ray_the_option_says_what_to_install(work, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(work("--ray", "local")) == 1
    assert 'pip install "ray[data]' in capfd.readouterr().err


def test_a_checkpoint_is_known_by_its_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    data = bytearray(os.urandom(2**20))
    path.write_bytes(data)
    digest = checkpoint_digest(path)
    assert digest == checkpoint_digest(tmp_path)
    data[700_000] ^= 1
    path.write_bytes(data)
    assert checkpoint_digest(path) != digest


def start(arguments, folder):
    """The script in a process of its own, as a user starts it."""
    return subprocess.Popen([sys.executable, str(ROOT / "scripts/batch_generate.py"), *arguments], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(folder, count):
    """Wait until the journal has so many rows."""
    part = folder / "out.jsonl.part"
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if part.exists() and part.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.02)
    raise TimeoutError("no rows")


@pytest.mark.process
def test_a_killed_process_and_an_interrupted_one_with_the_model_itself(work, tmp_path):
    """SIGKILL, then Ctrl-C, then to the end; and what one process gives that nobody disturbs."""
    rows = [{"prompt": prompt, "max_new_tokens": 3 + 7 * i % 60} for i, prompt in enumerate(PROMPTS * 4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = work("--do_sample", "true", "--top_p", "0.9", "--batch_size", 4)
    process = start(arguments, tmp_path)
    wait_for_rows(tmp_path, 10)
    process.kill()
    process.communicate()
    done = (tmp_path / "out.jsonl.part").read_bytes().count(b"\n") - 1
    assert 10 <= done < 120 and not (tmp_path / "out.jsonl").exists()

    process = start(arguments, tmp_path)
    wait_for_rows(tmp_path, done + 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and out == "" and "resuming behind" in err
    assert err.strip().endswith("stopped; the same command resumes here")

    assert main(arguments) == 0
    assert main(work("--do_sample", "true", "--top_p", "0.9", "--batch_size", 5, out="out2.jsonl")) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "out2.jsonl").read_bytes()
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(1, 121))
    assert len({answer["response"] for answer in answers}) > 100


@pytest.mark.parametrize("suffix", [".errors.jsonl", ".part", ".meta.json"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_an_input_that_the_output_would_replace_is_kept(work, fake, tmp_path, capfd, suffix, more):
    # The rows that failed, say, to be tried again.
    before = (tmp_path / "in.jsonl").rename(tmp_path / f"out.jsonl{suffix}").read_bytes()
    assert main([*work("--input_format", "jsonl", *more), "--input", f"out.jsonl{suffix}"]) == 1
    assert f"--output out.jsonl: the input is out.jsonl{suffix}, which is written beside it" in capfd.readouterr().err
    assert outputs(tmp_path) == {f"out.jsonl{suffix}": before}
