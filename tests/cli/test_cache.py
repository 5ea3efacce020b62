"""`qwen-ms cache`: what is in the cache, and deleting from it."""
import os
import time

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
        (folder / "model.safetensors.index.json").touch()
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
