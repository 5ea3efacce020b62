"""Replacing a checkpoint: killed at any moment, there is one of the two, whole, or the next run sees to it."""
import contextlib
import itertools
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from helpers.file_operations import replace_operation
from qwen_mindspore.checkpoint import files, replace
from qwen_mindspore.checkpoint.files import checkpoint_files
from qwen_mindspore.checkpoint.replace import repair, replacing_checkpoint, writes_one_file

OPERATIONS = ("mkdir", "replace", "rename", "unlink", "rmdir", "link")
INDEX = "model.safetensors.index.json"
NOTES = "notes.txt"
REAL_EXCHANGE = replace._exchange


class Kill(BaseException):
    """Ends a process: from then on it does nothing more."""


def shards(count):
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def content(output, word, count):
    """{file name: content} of a checkpoint, whose files all say `word`."""
    weights = [output.name] if writes_one_file(output) else shards(count)
    content = {name: word for name in (*weights, "config.json", "generation_config.json")}
    if not writes_one_file(output):
        index = json.dumps({"metadata": word, "weight_map": {name: name for name in weights}})
        content |= {INDEX: index, "param_name_map.json": index}
    return content


def folder_of(output):
    return output.parent if writes_one_file(output) else output


def older(output):
    """The files of the checkpoint that is there."""
    return [file for file in sorted(folder_of(output).glob("*")) if replace.OUR_FILES.fullmatch(file.name)
            or (file.name == output.name and file.is_file())]


def write(output, word, count=2):
    """What `save` does with `--overwrite`."""
    repair(output, clean=True)
    with replacing_checkpoint(output, older(output)) as scratch:
        for name, text in content(output, word, count).items():
            (scratch / name).write_text(text)


def files_in(folder):
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def read(output):
    """What a reader takes: the word that config and weights say; an OSError or ValueError if it takes nothing."""
    found = {file.read_text() for file in checkpoint_files(output)}
    found.add((folder_of(output) / "config.json").read_text())
    assert len(found) == 1, "config and weights are of one checkpoint"
    return found.pop()


@pytest.fixture(params=["exchanged", "renamed twice", "with folders in it", "working directory", "symlink", "one file"])
def output(request, tmp_path, monkeypatch):
    """A place for a checkpoint, and notes of a user's beside it; every way of replacing one."""
    folder = tmp_path / "home" / "checkpoint"
    folder.mkdir(parents=True)
    if request.param != "exchanged":
        monkeypatch.setattr(replace, "_exchange", lambda *_: False)
    if request.param == "with folders in it":
        (folder / "logs").mkdir()
    if request.param == "working directory":
        monkeypatch.chdir(folder)
    if request.param == "symlink":
        (tmp_path / "link").symlink_to(folder)
    (folder / NOTES).write_text("mine")
    return {"one file": folder / "qwen.ckpt", "symlink": tmp_path / "link", "working directory": Path(".")}.get(
        request.param, folder)


@contextlib.contextmanager
def killed_at(monkeypatch, moment, is_done):
    """The operation number `moment` that alters a folder is the last thing that the process does, or does not do."""
    calls, dead = itertools.count(), []

    def hooked(operation):
        def call(*args, **options):
            if not dead and next(calls) < moment:
                return operation(*args, **options)
            if not dead and is_done:
                operation(*args, **options)
            dead.append(True)
            raise Kill
        return call

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            replace_operation(patch, name, hooked(getattr(os, name)))
        patch.setattr(replace, "_exchange", hooked(replace._exchange))
        with contextlib.suppress(Kill):
            yield dead


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("counts", [(2, 2), (3, 2), (1, 1), (2, 3)])
def test_killed_at_any_moment_there_is_one_of_the_two(output, counts, is_done, monkeypatch, capsys):
    if writes_one_file(output) and counts != (2, 2):
        pytest.skip("one file has no shards")
    seen = set()
    for moment in itertools.count():
        write(output, "old", counts[0])
        with killed_at(monkeypatch, moment, is_done) as dead:
            write(output, "new", counts[1])
        with monkeypatch.context() as patch, contextlib.suppress(OSError, ValueError):
            # Even one who repairs nothing takes no mixture.
            patch.setattr(files, "repair", lambda path: None)
            read(output)
        seen.add(read(output))
        assert files_in(folder_of(output))[NOTES] == "mine"
        write(output, "new", counts[1])
        assert files_in(folder_of(output)) == content(output, "new", counts[1]) | {NOTES: "mine"}, "nothing is left"
        place = Path(os.path.realpath(folder_of(output)))
        assert not [path for path in (*place.glob(".*"), *place.parent.glob(".*"))], "no folder is left over"
        if not dead:
            break
    assert seen == {"old", "new"} and moment > 4


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("name", ["deep/checkpoint", "deep/qwen.ckpt"])
def test_a_first_checkpoint_is_whole_or_not_there(tmp_path, name, is_done, monkeypatch):
    output = tmp_path / name
    for moment in itertools.count():
        with killed_at(monkeypatch, moment, is_done) as dead:
            write(output, "new")
        try:
            assert read(output) == "new"
        except FileNotFoundError:
            assert not output.exists()
        write(output, "new")
        assert files_in(folder_of(output)) == content(output, "new", 2)
        assert {file.name for file in (tmp_path / "deep").iterdir()} <= {*content(output, "", 0), "checkpoint"}
        shutil.rmtree(tmp_path / "deep")
        if not dead:
            break
    assert moment > 2


def test_a_kill_while_files_are_written_leaves_what_the_next_run_removes(output, monkeypatch):
    write(output, "old")
    with killed_at(monkeypatch, 100, False) as dead, replacing_checkpoint(output, older(output)) as scratch:
        (scratch / shards(2)[0]).write_text("half")
        dead.append(True)
        raise Kill
    assert read(output) == "old" and scratch.is_dir()
    write(output, "new")
    assert files_in(folder_of(output)) == content(output, "new", 2) | {NOTES: "mine"}


def test_an_error_leaves_everything_as_it_was(output):
    write(output, "old")
    before = files_in(folder_of(output))
    with (pytest.raises(OSError, match="the disk is full, nothing was written"),
          replacing_checkpoint(output, older(output)) as scratch):
        (scratch / "config.json").write_text("new")
        raise OSError(28, "No space left on device")
    assert files_in(folder_of(output)) == before
    assert not [*folder_of(output).glob(".*"), *Path(os.path.realpath(folder_of(output))).parent.glob(".*")]


def test_folders_change_names_in_one_step_where_the_system_can(tmp_path):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert replace._exchange(tmp_path / "left", tmp_path / "right"), "Linux can on ext4, xfs, btrfs, tmpfs, overlayfs"
    assert (tmp_path / "left/right").exists() and (tmp_path / "right/left").exists()
    assert not replace._exchange(tmp_path / "left", tmp_path / "nothing")


def test_a_folder_keeps_its_mode_and_a_symlink_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    (tmp_path / "link").symlink_to("there")
    write(tmp_path / "link", "old")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "there") == "new"
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o750


def test_a_new_folder_may_be_read_by_whom_the_umask_lets(tmp_path):
    write(tmp_path / "new", "new")
    (tmp_path / "expected").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "expected").stat().st_mode


def test_a_folder_that_was_made_in_it_meanwhile_stays(tmp_path):
    output = tmp_path / "checkpoint"
    write(output, "old")
    with replacing_checkpoint(output, older(output)) as scratch:
        for name, text in content(output, "new", 2).items():
            (scratch / name).write_text(text)
        (output / "logs").mkdir()
        (output / NOTES).write_text("mine")
    assert read(output) == "new" and (output / "logs").is_dir() and files_in(output)[NOTES] == "mine"


def test_a_description_of_the_older_weights_does_not_outlive_them(output):
    write(output, "old")
    (folder_of(output) / "quantize_config.json").write_text("4 bits")
    write(output, "new")
    assert (folder_of(output) / "quantize_config.json").exists() == writes_one_file(output)


def test_a_mount_point_is_not_renamed(tmp_path, monkeypatch):
    write(tmp_path / "checkpoint", "old")
    inode = (tmp_path / "checkpoint").stat().st_ino
    monkeypatch.setattr(replace, "_is_mount", lambda folder: True)
    write(tmp_path / "checkpoint", "new")
    assert read(tmp_path / "checkpoint") == "new" and (tmp_path / "checkpoint").stat().st_ino == inode
    monkeypatch.undo()
    assert replace._is_mount(Path("/proc")) and not replace._is_mount(tmp_path)


def test_a_living_process_is_not_interfered_with(output):
    write(output, "old")
    with replacing_checkpoint(output, older(output)) as scratch:
        assert read(output) == "old"
        repair(output, clean=True)
        assert scratch.is_dir()
        for name, text in content(output, "new", 2).items():
            (scratch / name).write_text(text)
    assert read(output) == "new"


@pytest.mark.parametrize("is_there", [False, True])
def test_of_two_processes_that_write_one_folder_the_second_is_told(tmp_path, is_there):
    output = tmp_path / "checkpoint"
    if is_there:
        output.mkdir()
    with (pytest.raises(FileExistsError, match="checkpoint exists: another process wrote it meanwhile"),
          replacing_checkpoint(output, []) as scratch):
        (scratch / "config.json").write_text("second")
        write(output, "first")
    assert read(output) == "first" and not [*tmp_path.glob(".*")]


def test_who_opens_a_checkpoint_that_is_just_being_replaced_is_told(output, monkeypatch):
    """Between the first and the last step of moving files, or the two of renaming folders."""
    write(output, "old")
    seen = []

    def opening(operation):
        def call(*args, **options):
            if not folder_of(output).exists() or Path(args[0]).name.startswith(("model-", "qwen")):
                with pytest.raises(BlockingIOError, match="another process is replacing this checkpoint: try again"):
                    checkpoint_files(output)
                seen.append(args)
            return operation(*args, **options)
        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            replace_operation(patch, name, opening(getattr(os, name)))
        write(output, "new")
    assert bool(seen) == (replace._exchange is not REAL_EXCHANGE)
    assert read(output) == "new"


def test_one_who_may_not_write_there_is_told_what_to_do(tmp_path, monkeypatch):
    output = tmp_path / "checkpoint"
    write(output, "old")
    os.rename(output, tmp_path / ".checkpoint.old-01234567")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        replace_operation(patch, "rename", refused)
        with pytest.raises(OSError, match=r"can't be repaired \(Permission denied\): rename .*old-01234567 to it"):
            checkpoint_files(output)
    assert read(output) == "old"


def test_a_repair_is_told(tmp_path, capsys):
    write(tmp_path / "checkpoint", "old")
    os.rename(tmp_path / "checkpoint", tmp_path / ".checkpoint.old-01234567")
    repair(tmp_path / "checkpoint")
    assert "checkpoint: repaired; a process that was to replace this checkpoint was killed" in capsys.readouterr().err


def test_what_earlier_versions_left_in_a_folder_goes(tmp_path):
    (tmp_path / "checkpoint/.partial-abc").mkdir(parents=True)
    (tmp_path / "checkpoint/.partial-abc/model-00001-of-00002.safetensors").touch()
    write(tmp_path / "checkpoint", "new")
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == set(content(tmp_path / "checkpoint", "", 2))


def test_what_a_stranger_left_is_not_moved_about(tmp_path, monkeypatch):
    write(tmp_path / "checkpoint", "old")
    left = tmp_path / "checkpoint/.qwen.ckpt.moving-01234567"
    left.mkdir()
    (left / "config.json").write_text("theirs")
    if os.geteuid() != 0:
        pytest.skip("needs to give files to another user")
    os.chown(left, 12345, -1)
    assert read(tmp_path / "checkpoint") == "old" and left.is_dir()
    os.chown(left, os.geteuid(), -1)
    repair(tmp_path / "checkpoint")
    assert files_in(tmp_path / "checkpoint")["config.json"] == "theirs"
