"""What every command does with streams that are closed, readers that stop reading, and an environment of nonsense."""
import os
import subprocess
import sys

import pytest

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.common.cpus import check_threads, thread_count

COMMAND = r"""
import sys
from qwen_mindspore.cli.command import run_command

def work(answers):
    for number in range({lines}):
        print("answer \u4e2d", file=answers, flush=True)
    with open("result.txt", "w") as file:
        file.write("\u4e2d")

sys.exit(run_command("name", work))
"""


def run(folder, shell, lines=1, **environment):
    """A command behind a line of shell, in which "$@" stands for it."""
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", COMMAND.format(lines=lines)]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, timeout=100,
                          check=False)


@pytest.mark.process
class TestStreams:
    def test_a_reader_that_stops_reading_ends_the_command_in_silence(self, tmp_path):
        result = run(tmp_path, '"$@" | head -1; exit ${PIPESTATUS[0]}', lines=100_000)
        assert (result.returncode, result.stdout.decode(), result.stderr) == (141, "answer 中\n", b"")

    def test_a_closed_standard_output_is_an_error(self, tmp_path):
        result = run(tmp_path, '"$@" >&-')
        assert (result.returncode, result.stderr) == (
            1, b"name: standard output is closed: there is no place for answers\n")

    def test_a_full_disk_is_an_error(self, tmp_path):
        result = run(tmp_path, '"$@" >/dev/full')
        assert (result.returncode, result.stderr) == (1, b"name: [Errno 28] No space left on device\n")

    def test_a_closed_standard_error_or_input_is_none(self, tmp_path):
        result = run(tmp_path, '"$@" 2>&- <&-')
        assert (result.returncode, result.stdout.decode(), result.stderr) == (0, "answer 中\n", b"")

    def test_answers_and_files_are_utf8_in_a_locale_without_it(self, tmp_path):
        result = run(tmp_path, '"$@"', LC_ALL="POSIX", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0",
                     PYTHONIOENCODING="ascii")
        assert (result.returncode, result.stdout.decode()) == (0, "answer 中\n"), result.stderr
        assert (tmp_path / "result.txt").read_bytes() == "中".encode()

    def test_a_working_folder_that_is_gone_is_an_error(self, tmp_path):
        result = run(tmp_path, 'mkdir gone; cd gone; rmdir ../gone; "$@"')
        assert (result.returncode, result.stderr.splitlines()[-1]) == (
            1, b"name: the working folder: No such file or directory: go to one that is there")


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "00", "2,0", "1,,2", " ", "0x2"])
def test_a_number_of_threads_that_is_none_is_named(value, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert run_command("name", lambda answers: None) == 1
    assert "name: OMP_NUM_THREADS: expected a positive number, found '" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["10000", "9" * 5000])
def test_more_threads_than_any_machine_has_are_refused(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS: expected at most 1024 threads, found '{value[:5]}"):
        check_threads()


@pytest.mark.parametrize("value", ["", "1", " 4 ", "4,2"])
def test_what_openmp_understands_is_left_alone(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    check_threads()
    assert thread_count("X", "007") == 7
