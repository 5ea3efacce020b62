"""`qwen-ms cache`: what is in the cache, and deleting from it."""
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from helpers.hub import COMMIT
from qwen_mindspore.checkpoint.hub import RemoteFile, Repository
from qwen_mindspore.checkpoint.model_cache import entries, hub_entry, local_entry
from qwen_mindspore.cli.cache import main

DAY = 86400


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/qwen-mindspore/hub"


def model(name="Qwen/Qwen-7B", revision="main", commit=COMMIT, hub="huggingface", downloaded=None, age=0):
    """A model of 2000 bytes: converted, or so many bytes of it downloaded."""
    entry = hub_entry(Repository(hub, name, revision, commit, {"model.safetensors": RemoteFile(2000)}))
    folder = entry.checkpoint if downloaded is None else entry.download
    folder.mkdir(parents=True)
    entry.save()
    if downloaded is None:
        (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(2000 if downloaded is None else downloaded))
    os.utime(entry.folder / "entry.json", (time.time() - age * DAY,) * 2)
    return entry


def said(capfd):
    """(standard output, standard error) as lists of lines."""
    return [text.splitlines() for text in capfd.readouterr()]


def test_an_empty_cache_says_where_it_would_be(cache, capfd):
    assert main([]) == 0
    assert said(capfd) == [[], [f"cache: no models in {cache}"]]


def test_the_list_has_names_revisions_what_there_is_sizes_and_days_the_last_used_first(capfd):
    model(age=3)
    model("Qwen/Qwen-14B", commit="f" * 40, revision="f" * 40, age=1)
    model("Qwen/Qwen-72B", "master", "master", "modelscope", downloaded=500, age=2)
    assert main([]) == 0
    out, err = said(capfd)
    assert [line.split("  ")[0] for line in out] == ["NAME         ".strip(), "Qwen/Qwen-14B", "Qwen/Qwen-72B",
                                                    "Qwen/Qwen-7B"]
    for line, revision, what, size, age in zip(
            out[1:], ["ffffffffffff", "master, modelscope", "main (0123456)"],
            ["converted", "download, 25 %", "converted"], ["2.2 kB", "692 bytes", "2.2 kB"], [1, 2, 3]):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - age * DAY))
        assert f" {revision}  " in line and f" {what}  " in line and line.endswith(f"  {day}")
    assert len(err) == 1 and err[0].startswith("cache: ") and " kB in " in err[0]


def test_a_folder_of_this_disk_is_listed_by_its_path(tmp_path, capfd):
    entry = local_entry(tmp_path / "mine")
    entry.folder.mkdir(parents=True)
    entry.save()
    main([])
    line = said(capfd)[0][1]
    assert line.startswith(f"{tmp_path / 'mine'}  -") and "settings" in line


def test_deleting_takes_every_revision_of_a_name_and_asks_nothing(cache, capfd):
    model()
    model(revision="v1", commit="1" * 40)
    other = model("Qwen/Qwen-14B")
    assert main(["--delete", "Qwen/Qwen-7B"]) == 0
    assert [entry.folder for entry in entries()] == [other.folder]
    assert not (cache / "huggingface/Qwen--Qwen-7B").exists()
    out, err = said(capfd)
    assert out == [] and len(err) == 2 and "cache: Qwen/Qwen-7B, v1 (1111111): deleted, 2." in "\n".join(err)


@pytest.mark.parametrize("arguments, left", [(["--revision", "v1"], ["main"]), (["--revision", COMMIT], ["v1"]),
                                             (["--hub", "huggingface"], [])])
def test_or_one_revision_alone(arguments, left):
    model()
    model(revision="v1", commit="1" * 40)
    assert main(["--delete", "Qwen/Qwen-7B", *arguments]) == 0
    assert [entry.info["revision"] for entry in entries()] == left


@pytest.mark.parametrize("arguments, message", [
    (["Qwen/Qwen-7b"], "--delete Qwen/Qwen-7b: nothing in the cache; did you mean Qwen/Qwen-7B?"),
    (["other"], "--delete other: nothing in the cache; qwen-ms cache lists what is"),
    (["Qwen/Qwen-7B", "other"], "--delete other: nothing in the cache; qwen-ms cache lists what is"),
    (["Qwen/Qwen-7B", "--revision", "v2"],
     "--delete Qwen/Qwen-7B: nothing of revision v2 in the cache; qwen-ms cache lists what is"),
    (["../../.."], "--delete ../../..: nothing in the cache; qwen-ms cache lists what is"),
])
def test_what_is_not_there_is_refused_and_nothing_is_deleted(arguments, message, capfd):
    model()
    assert main(["--delete", *arguments]) == 1
    assert said(capfd) == [[], [f"cache: {message}"]]
    assert len(entries()) == 1


DAMAGED = ["", "[]", "{}", '{"hub": "huggingface", "name": 3}',
           json.dumps({"hub": "huggingface", "name": "Qwen/Qwen-7B", "revision": 7, "commit": COMMIT, "files": {}}),
           json.dumps({"hub": "huggingface", "name": "Qwen/Qwen-7B", "revision": "main", "commit": COMMIT,
                       "files": {"model.safetensors": {"sizes": 2000}}})]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_entry_that_can_not_be_read_is_listed_as_damaged_and_can_be_deleted(content, capfd):
    other = model("Qwen/Qwen-14B")
    (model().folder / "entry.json").write_text(content)
    assert main([]) == 0
    assert [" damaged " in line for line in said(capfd)[0] if line.startswith("Qwen/Qwen-7B ")] == [True]
    assert main(["--delete", "Qwen/Qwen-7B"]) == 0
    assert [entry.folder for entry in entries()] == [other.folder]


def test_so_is_a_converted_model_of_which_a_file_is_missing(capfd):
    entry = model()
    (entry.checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert main([]) == 0
    assert " damaged " in said(capfd)[0][1]


def test_a_damaged_entry_of_a_folder_of_this_disk_is_named_by_its_place(tmp_path, capfd):
    entry = local_entry(tmp_path / "mine")
    entry.folder.mkdir(parents=True)
    (entry.folder / "entry.json").write_text("{")
    assert main([]) == 0 and said(capfd)[0][1].startswith(f"{entry.folder}  -")
    assert main(["--delete", str(entry.folder)]) == 0
    assert entries() == []


def test_a_folder_in_the_place_of_an_entry_s_file_is_no_entry(cache, capfd):
    (cache / "huggingface/Qwen--Qwen-7B/x/entry.json").mkdir(parents=True)
    assert main([]) == 0
    assert said(capfd)[0] == []


def test_files_that_go_while_they_are_counted_are_not_counted(monkeypatch):
    entry = model(downloaded=500)
    (entry.download / "gone").write_bytes(b"x")

    def going(real):
        def status(path, *arguments, **options):
            if path.name == "gone":
                raise FileNotFoundError(path)
            return real(path, *arguments, **options)
        return status

    monkeypatch.setattr(Path, "lstat", going(Path.lstat))
    monkeypatch.setattr(Path, "stat", going(Path.stat))
    assert entry.what == "download, 25 %" and entry.size > 500


def test_who_waits_for_a_model_that_is_deleted_meanwhile_holds_a_lock_that_is_there():
    entry, seen = model(downloaded=500), []

    def wait():
        with entry.locked():
            seen.append((entry.folder / "lock").is_file())
            with pytest.raises(BlockingIOError), entry.locked(wait=False):
                pass

    with entry.locked():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        shutil.rmtree(entry.folder)
    thread.join(10)
    assert seen == [True]


def test_every_revision_that_is_the_same_commit_is_shown_and_understood(capfd):
    entry = model()
    hub_entry(Repository("huggingface", "Qwen/Qwen-7B", "v1", COMMIT, {})).remember()
    assert main([]) == 0
    assert "  main, v1 (0123456)  " in said(capfd)[0][1]
    assert main(["--delete", "Qwen/Qwen-7B", "--revision", "v1"]) == 0
    assert not entry.folder.exists()


def test_a_model_that_is_being_fetched_is_left_alone(capfd):
    entry = model(downloaded=500)
    with entry.locked():
        assert main(["--delete", "Qwen/Qwen-7B"]) == 1
    assert "Qwen/Qwen-7B: another process is fetching or converting it" in said(capfd)[1][0]
    assert len(entries()) == 1


def test_a_revision_alone_is_refused(capfd):
    with pytest.raises(SystemExit):
        main(["--revision", "main"])
    assert "--revision goes with --delete" in capfd.readouterr().err
