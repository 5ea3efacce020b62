"""The journal of batch generation: killed at any moment, it goes on as if nothing had been."""
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys

import pytest

from qwen_mindspore.batch import journal as batch_journal
from qwen_mindspore.batch.journal import ANSWER, ERROR, Journal, dump_json

FINGERPRINT = {"input": "abc", "settings": {"temperature": 0.5, "stop_words_ids": ((1,), (2, 3))}}
ROWS = {1: (ANSWER, {"id": 1, "response": "你好\n\t\"x\" \u2028"}), 2: (ERROR, {"row": 2, "error": "no prompt"}),
        3: (ANSWER, {"id": "b", "response": ""}), 5: (ANSWER, {"id": "b", "response": "é" * 50}),
        6: (ERROR, {"row": 6, "error": "no"}), 9: (ANSWER, {"id": None, "response": "half \ud83d a pair"})}


class Kill(BaseException):
    """Ends a process in the middle of an operation."""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture
def no_sync(monkeypatch):
    monkeypatch.setattr(batch_journal.os, "fsync", lambda _: None)


def work(out, order, rows=None, overwrite=False):
    """A process that finishes rows in some order, those that are not done yet."""
    rows = rows or ROWS
    with Journal(out, FINGERPRINT, overwrite) as journal:
        if not journal.is_complete:
            for number in order:
                if number not in journal:
                    journal.add(number, *rows[number])
            journal.finish()


def files(out):
    return {path.name: path.read_bytes() for path in out.parent.iterdir()}


@pytest.fixture
def expected(tmp_path_factory):
    """What an uninterrupted run leaves: {name: bytes}."""
    out = tmp_path_factory.mktemp("uninterrupted") / "answers.jsonl"
    work(out, list(ROWS))
    return files(out)


def test_answers_and_errors_come_in_order_each_in_a_file_of_its_own(out, expected):
    work(out, [9, 2, 5, 1, 6, 3])
    assert files(out) == expected, "the order in which rows finish does not matter"
    assert [json.loads(line) for line in out.read_text().splitlines()] == [ROWS[n][1] for n in (1, 3, 5, 9)]
    errors = out.with_name("answers.jsonl.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in errors] == [2, 6]
    meta = json.loads(out.with_name("answers.jsonl.meta.json").read_text())
    assert meta["rows"] == {"answers": 4, "errors": 2} and meta["settings"]["temperature"] == 0.5
    assert set(expected) == {"answers.jsonl", "answers.jsonl.errors.jsonl", "answers.jsonl.meta.json"}


def test_text_is_utf8_and_half_a_surrogate_pair_survives(out, expected):
    work(out, list(ROWS))
    assert "你好".encode() in out.read_bytes()
    assert json.loads(out.read_text().splitlines()[3])["response"] == "half \ud83d a pair"
    assert dump_json({"a": "\n\r\t\u2028"}).count(b"\n") == 0


def killing(operation, calls, moment, partial):
    """The operation, in whose call number `moment` the process is killed, when so much of it is done."""
    def hooked(*args):
        if next(calls) < moment:
            return operation(*args)
        if len(args) == 2 and isinstance(args[1], memoryview):
            operation(args[0], args[1][:int(partial * len(args[1]))])
        elif partial:
            operation(*args)
        raise Kill
    return hooked


@pytest.mark.parametrize("operation, partial", [("write", 0.0), ("write", 0.5), ("write", 1.0), ("replace", 0),
                                                ("replace", 1), ("fsync", 0), ("ftruncate", 0), ("ftruncate", 1)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_operation_it_ends_the_same(out, expected, no_sync, monkeypatch, operation, partial, overwrite):
    """Each operation in its turn is done, half done or not done, and then the process is gone."""
    real = getattr(os, operation)
    for moment in itertools.count():
        for path in out.parent.iterdir():
            path.unlink()
        if overwrite:
            out.write_text("an older output")
        calls = itertools.count()
        order = random.Random(moment).sample(list(ROWS), len(ROWS))
        with monkeypatch.context() as patch:
            patch.setattr(batch_journal.os, operation, killing(real, calls, moment, partial))
            patch.setattr(Journal, "close", lambda journal: os.close(journal._file))  # all that a kill closes
            with contextlib.suppress(Kill):
                work(out, order, overwrite=overwrite)
        is_whole = out.exists() and out.read_bytes() == expected["answers.jsonl"]
        assert is_whole or out.exists() == overwrite, "the output is whole, or as it was"
        try:
            work(out, order[::-1])
        except ValueError:
            assert overwrite and moment < 3, "an older output is only taken for that while nothing was begun"
            work(out, order[::-1], overwrite=True)
        assert files(out) == expected
        if next(calls) <= moment:  # nothing was left to be killed
            break
    assert moment > 0


def test_whatever_is_cut_off_the_journal_only_the_rows_behind_are_lost(out, expected, no_sync):
    with Journal(out, FINGERPRINT) as journal:
        for number in (5, 2, 9, 1, 3):
            journal.add(number, *ROWS[number])
    part = out.with_name("answers.jsonl.part")
    whole = part.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        part.write_bytes(whole[:length])
        with Journal(out, FINGERPRINT) as journal:
            assert sum(journal.counts.values()) == max(sum(end <= length for end in ends) - 1, 0)
            for number, row in ROWS.items():
                if number not in journal:
                    journal.add(number, *row)
            journal.finish()
        assert files(out) == expected
        out.unlink()


def test_a_damaged_line_and_what_is_behind_it_is_done_anew(out, expected, no_sync):
    """A power cut may leave a hole in what had not come to the disk."""
    with Journal(out, FINGERPRINT) as journal:
        for number, row in ROWS.items():
            journal.add(number, *row)
    part = out.with_name("answers.jsonl.part")
    whole = part.read_bytes()
    first_row = whole.index(b"\n") + 1
    for place in range(first_row, len(whole), 7):
        part.write_bytes(whole[:place] + b"\0" * 5 + whole[place + 5:])
        with Journal(out, FINGERPRINT) as journal:
            assert sum(journal.counts.values()) < len(ROWS)
        part.write_bytes(whole[:place] + b"\0" * 5 + whole[place + 5:])
        work(out, list(ROWS))
        assert out.read_bytes() == expected["answers.jsonl"]
        out.unlink()


def test_a_row_is_never_there_twice(out):
    with Journal(out, FINGERPRINT) as journal:
        journal.add(1, ANSWER, {"response": "first"})
        journal.add(1, ANSWER, {"response": "second"})
        journal.finish()
    assert out.read_text() == '{"response": "first"}\n'


def test_without_rows_the_output_is_empty_and_there_are_no_errors(out):
    out.with_name("answers.jsonl.errors.jsonl").write_text("of an older run")
    work(out, [])
    assert out.read_bytes() == b"" and set(files(out)) == {"answers.jsonl", "answers.jsonl.meta.json"}


def test_a_run_without_a_finished_row_leaves_nothing(out):
    with Journal(out, FINGERPRINT):
        pass
    assert files(out) == {}


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(out, finished):
    with Journal(out, FINGERPRINT) as journal:
        journal.add(1, *ROWS[1])
        if finished:
            journal.finish()
    before = files(out)
    with pytest.raises(ValueError, match=r"settings.temperature was 0.5, is 0.7 now; "
                                         r"seed was None, is 1 now.*--overwr"):
        Journal(out, {"input": "abc", "settings": {**FINGERPRINT["settings"], "temperature": 0.7}, "seed": 1})
    assert files(out) == before


def test_the_same_run_again_has_nothing_to_do_unless_told(out):
    work(out, list(ROWS))
    before = files(out)
    with Journal(out, FINGERPRINT) as journal:
        assert journal.is_complete
    assert files(out) == before
    work(out, [3, 1], overwrite=True)
    assert len(out.read_text().splitlines()) == 2 and set(files(out)) == {"answers.jsonl", "answers.jsonl.meta.json"}


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.part"])
def test_what_others_wrote_is_not_touched(out, name):
    out.with_name(name).write_text("my notes\n")
    with pytest.raises(ValueError, match=f"{name}: is there already"):
        Journal(out, FINGERPRINT)
    assert files(out) == {name: b"my notes\n"}


@pytest.mark.process
def test_one_process_at_a_time(out):
    code = ("import sys; from qwen_mindspore.batch.journal import Journal; j = Journal(sys.argv[1], {}); "
            "j.add(1, 'A', {}); print('locked', flush=True); input()")
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(BlockingIOError, match="another process is at work"):
        Journal(out, {}, overwrite=True)
    process.kill()
    process.wait()
    with Journal(out, {}) as journal:
        assert 1 in journal and 2 not in journal, "the lock of a killed process is gone, its rows are not"


def test_a_full_disk_is_an_error_that_can_be_gone_on_from(out, expected, monkeypatch):
    def full(file, data):
        os.pwrite(file, bytes(data[:3]), os.fstat(file).st_size)
        raise OSError(28, "No space left on device")

    with Journal(out, FINGERPRINT) as journal:
        journal.add(3, *ROWS[3])
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(batch_journal.os, "write", full)
            journal.add(1, *ROWS[1])
    work(out, list(ROWS))
    assert out.read_bytes() == expected["answers.jsonl"]
