"""Where things are written in a container: without a home, in a folder that can only be read, without a name."""
import os
import stat
import subprocess
import sys

import pytest

from helpers import ROOT
from qwen_mindspore.common import folders
from qwen_mindspore.common.files import cache_folder, state_folder
from qwen_mindspore.common.folders import provide_folders, temporary_folder, usable


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A system's temporary folder of its own, a user's environment, and nothing said so far."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(folders, "_said", [])
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "LOG_MF_PATH", "LOCAL_DEFAULT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    temporary_folder.cache_clear()
    yield
    temporary_folder.cache_clear()


@pytest.fixture
def temporary(tmp_path):
    return tmp_path / f"tmp/qwen-mindspore-{os.getuid()}"


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder that nobody may write to, not even root, who runs the tests in a container."""
    folder = tmp_path / "ro"
    folder.mkdir()
    may, mine = os.access, str(folder)
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and not (
        mode & os.W_OK and str(path).startswith(mine)))
    return folder


def test_folders_that_can_be_made_are_taken_in_silence(tmp_path, capsys):
    assert cache_folder("a", "b") == tmp_path / ".cache/qwen-mindspore/a/b"
    assert state_folder() == tmp_path / ".local/state/qwen-mindspore"
    assert usable("new/output", "output") == usable(tmp_path / "new/output").relative_to(tmp_path)
    assert capsys.readouterr().err == "" and not (tmp_path / "new").exists()


def test_a_folder_that_can_not_be_written_to_is_replaced_which_is_said_once(read_only, temporary, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only))
    assert cache_folder("kernels", "a.so") == temporary / "cache/kernels/a.so"
    assert usable(read_only / "output", "output") == temporary / "output"
    assert capsys.readouterr().err == (
        f"qwen-mindspore: {read_only}/qwen-mindspore/kernels/a.so: {read_only} can't be written to: {temporary} is "
        "used instead; XDG_CACHE_HOME names another\n")
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


def test_what_is_in_a_cache_that_can_only_be_read_is_taken_from_there(read_only, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only))
    (read_only / "qwen-mindspore").mkdir()
    (read_only / "qwen-mindspore/a.so").touch()
    assert cache_folder("a.so") == read_only / "qwen-mindspore/a.so"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["", "relative/path"])
def test_a_path_that_is_not_absolute_names_no_cache(variable, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert cache_folder() == tmp_path / ".cache/qwen-mindspore"


@pytest.mark.parametrize("home", [None, "", "nowhere"])
def test_without_a_home_there_is_one_for_what_needs_it(home, temporary, monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home) if home is not None else path)
    provide_folders()
    assert os.environ["HOME"] == str(temporary / "home") and (temporary / "home").is_dir()
    assert capsys.readouterr().err == (
        f"qwen-mindspore: no home folder: {temporary} is used instead; HOME names another\n")


def test_mindformers_logs_where_it_can(read_only, temporary, monkeypatch):
    provide_folders()
    assert "LOG_MF_PATH" not in os.environ and "LOCAL_DEFAULT_PATH" not in os.environ
    monkeypatch.setenv("LOG_MF_PATH", str(read_only / "log"))
    monkeypatch.chdir(read_only)
    provide_folders()
    assert os.environ["LOG_MF_PATH"] == str(temporary / "output/log")
    assert os.environ["LOCAL_DEFAULT_PATH"] == str(temporary / "output")


def test_a_file_in_the_way_is_no_folder(tmp_path, temporary):
    (tmp_path / "output").touch()
    assert usable("output", "output") == temporary / "output"
    assert usable("output/log", "log") == temporary / "log"


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_temporary_folder_that_others_may_write_to_is_not_trusted(kind, temporary, tmp_path):
    if kind == "open":
        temporary.mkdir()
        temporary.chmod(0o777)
    elif kind == "link":
        (tmp_path / "theirs").mkdir()
        temporary.symlink_to(tmp_path / "theirs")
    else:
        temporary.touch()
    found = temporary_folder()
    assert found != temporary and found.name.startswith("qwen-mindspore-")
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_without_any_temporary_folder_nothing_is_raised_before_something_is_written(read_only, monkeypatch):
    def missing():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(folders.tempfile, "gettempdir", missing)
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only))
    path = cache_folder("a")
    with pytest.raises(OSError):
        path.parent.mkdir(parents=True)


@pytest.mark.process
def test_in_a_container_without_a_home_and_a_folder_to_write_to_mindformers_is_imported(tmp_path):
    code = ("import os, sys\n"
            "may = os.access\n"
            "os.access = lambda path, mode: may(path, mode) and not (mode & os.W_OK and 'cwd' in str(path))\n"
            "os.path.expanduser = lambda path: path.replace('~', os.environ.get('HOME', '~'))\n"
            "import mindformers\n"
            "print(os.listdir('.'), os.environ['HOME'])\n")
    (tmp_path / "cwd").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT / "research/qwen")}
    del environment["HOME"]
    code = "import qwen_mindspore.register\n" + code  # as every Python does at its start
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "cwd", env=environment, capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"[] {tmp_path}/tmp/qwen-mindspore-{os.getuid()}/home"
    assert result.stderr.count("qwen-mindspore: ") == 1
