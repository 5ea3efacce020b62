"""Fetching a model from a hub: what, whole or not at all, resumed, and what is said when it can't be."""
import json
import shutil
import socket
import sys
import types
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from qwen_mindspore.checkpoint.hub import HUBS, Unreachable, fetch, is_hub_name, look_up
from qwen_mindspore.common.files import sha256

NAME = "Qwen/Qwen-tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def fetched(hub, tmp_path):
    """A function that fetches the model into a folder, the same each time."""
    def run(name=NAME, revision=None):
        fetch(look_up("huggingface", name, revision), tmp_path / "fetched")
        return {path.name: path for path in (tmp_path / "fetched").iterdir() if path.is_file()}

    return run


class TestWhatIsFetched:
    def test_weights_and_what_describes_them_and_the_vocabulary_and_never_code(self, fetched, hub, source):
        files = fetched()
        assert set(files) == {"config.json", "generation_config.json", "qwen.tiktoken", WEIGHTS}
        assert all(path.read_bytes() == (source / name).read_bytes() for name, path in files.items())
        others = (".py", ".bin", ".md", "other.safetensors")
        assert not [path for _, path, _, _ in hub.requests if path.endswith(others)]

    def test_bin_where_there_are_no_safetensors(self, fetched, source):
        (source / WEIGHTS).unlink()
        assert "pytorch_model.bin" in fetched()

    def test_shards_come_with_their_index(self, fetched, other, hub):
        name = other("a/shards", **{WEIGHTS: None, "model.safetensors.index.json": '{"weight_map": {}}'})
        for number in (1, 2):
            (hub.repositories[name] / f"model-0000{number}-of-00002.safetensors").write_bytes(b"weights")
        assert {"model.safetensors.index.json", "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"} <= set(fetched(name))

    def test_the_size_is_said_before_a_byte_of_the_weights_is_fetched(self, fetched, hub, capsys):
        said = []
        hub.on_sent = lambda _: said.append(capsys.readouterr().err)
        fetched()
        assert said[0].startswith(f"model: fetching {NAME}, revision main: ") and "kB of weights in 1 file;" in said[0]

    def test_a_revision_is_a_branch_a_tag_or_a_commit(self, hub):
        commits = {look_up("huggingface", NAME, revision).commit for revision in (None, "main", "v1")}
        assert commits == {look_up("huggingface", NAME, *commits).commit}

    def test_what_is_there_is_not_fetched_again(self, fetched, hub):
        fetched()
        before = len(hub.requests)
        fetched()
        assert [request[0] for request in hub.requests[before:]] == ["GET"], "it was looked up, and that is all"


class TestConnectionsThatBreak:
    def test_the_rest_is_fetched_and_no_byte_twice(self, fetched, hub, source):
        hub.break_after, hub.breaks = 1024, 3
        path = fetched()[WEIGHTS]
        assert path.read_bytes() == (source / WEIGHTS).read_bytes()
        assert [first for first, _ in hub.bodies(WEIGHTS)] == [0, 1024, 2048, 3072]
        assert sum(sent for _, sent in hub.bodies(WEIGHTS)) == path.stat().st_size

    def test_one_that_never_holds_is_given_up_and_what_there_is_is_kept(self, fetched, hub, capsys):
        hub.break_after, hub.breaks = 1024, 1
        hub.on_sent = lambda sent: setattr(hub, "break_after", 0) or setattr(hub, "breaks", 99)
        with pytest.raises(Unreachable, match=f"{NAME}: {WEIGHTS}: the connection to {hub.url} breaks again and again"):
            fetched()
        hub.breaks = hub.on_sent = 0
        fetched()
        assert hub.bodies(WEIGHTS)[-1][0] == 1024
        assert "kB of weights in 1 file, of which 6.8 kB are still missing; " in capsys.readouterr().err


class TestBytesThatDiffer:
    @pytest.mark.parametrize("name", [WEIGHTS, "qwen.tiktoken"])
    def test_a_file_with_another_digest_is_fetched_anew(self, fetched, hub, source, name, capsys):
        hub.corrupt = {name: 1}
        assert fetched()[name].read_bytes() == (source / name).read_bytes()
        assert len(hub.bodies(name)) == 2
        assert f"model: {name}: its " in capsys.readouterr().err

    def test_twice_is_an_error_and_nothing_is_left_of_it(self, fetched, hub, tmp_path):
        hub.corrupt = {WEIGHTS: 2}
        with pytest.raises(ValueError, match=f"{NAME}: {WEIGHTS}: its sha256 is not [0-9a-f]*, which the hub has on "
                                             "record, though it was fetched twice"):
            fetched()
        assert not (tmp_path / "fetched" / WEIGHTS).exists()

    def test_what_was_damaged_on_this_disk_is_fetched_anew(self, fetched, hub, source):
        path = fetched()[WEIGHTS]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert sha256(fetched()[WEIGHTS]) == sha256(source / WEIGHTS)


class TestWhatOtherProgramsHaveFetched:
    """It is in huggingface_hub's own cache, and stays there."""

    @pytest.fixture
    def cached(self, hub):
        """The weights' path in that cache."""
        path = huggingface_hub.snapshot_download(NAME, endpoint=hub.url, cache_dir=constants.HF_HUB_CACHE)
        hub.requests.clear()
        return Path(path, WEIGHTS)

    def test_it_is_not_fetched_again(self, cached, fetched, hub, source):
        assert sha256(fetched()[WEIGHTS]) == sha256(source / WEIGHTS)
        assert hub.bodies(WEIGHTS) == [] and cached.is_file()

    def test_a_damaged_file_is_and_the_other_one_is_left_alone(self, cached, fetched, hub, source):
        damaged = cached.read_bytes()[:-1] + b"?"
        cached.write_bytes(damaged)
        assert sha256(fetched()[WEIGHTS]) == sha256(source / WEIGHTS)
        assert cached.read_bytes() == damaged and len(hub.bodies(WEIGHTS)) == 1

    def test_it_does_without_a_connection(self, cached, fetched, unreachable, source):
        unreachable()
        assert sha256(fetched()[WEIGHTS]) == sha256(source / WEIGHTS)

    def test_a_model_of_which_it_has_no_weights_does_not(self, cached, fetched, unreachable):
        for path in (cached, cached.with_name("pytorch_model.bin")):
            path.unlink()
        unreachable()
        with pytest.raises(Unreachable, match="can't be reached"):
            fetched()


class TestRefusals:
    """Each is one line, and no weights were fetched."""

    def refused(self, hub, error, *arguments):
        with pytest.raises(error) as info:
            self.fetched(*arguments)
        assert not hub.bodies(WEIGHTS) and "\n" not in str(info.value)
        return str(info.value)

    @pytest.fixture(autouse=True)
    def _fetched(self, fetched):
        self.fetched = fetched

    @pytest.mark.parametrize("name, advice", [("Qwen/Qwen-1_8B-Chta", "did you mean Qwen/Qwen-1_8B-Chat?"),
                                              ("no/body", "check the name, ")])
    def test_a_name_that_the_hub_does_not_know(self, hub, name, advice):
        said = self.refused(hub, FileNotFoundError, name)
        assert said.startswith(f"{name}: {hub.url} has no such model, or a private one: {advice}")

    def test_a_gated_model(self, hub):
        hub.gated.add(NAME)
        said = self.refused(hub, PermissionError)
        assert said == f"{NAME} is gated: accept its terms on {hub.url}/{NAME}, then log in with `hf auth login` or " \
                       "set HF_TOKEN"

    def test_a_revision_that_is_not_there(self, hub):
        assert f"{NAME}: no revision old there: " in self.refused(hub, FileNotFoundError, NAME, "old")

    def test_a_token_that_may_not_read_it(self, hub):
        hub.refuse = 403
        assert f"{hub.url} refuses it (403): log in" in self.refused(hub, PermissionError)

    def test_a_hub_that_is_out_of_order(self, hub):
        hub.refuse = 503
        assert f"{hub.url} can't be reached (it answers 503)" in self.refused(hub, Unreachable)
        assert "try again later. What was fetched is kept" in self.refused(hub, Unreachable)

    def test_a_hub_that_never_answers(self, hub, monkeypatch, capfd):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setenv("HF_ENDPOINT", url)
            monkeypatch.setattr("qwen_mindspore.checkpoint.hub.SILENCE", 0.1)
            monkeypatch.setattr("qwen_mindspore.checkpoint.hub.PATIENCE", 1.0)
            assert f"{url} can't be reached (ReadTimeout): is this machine offline?" in self.refused(hub, Unreachable)
        assert f"model: looking up {NAME} at {url} ...\n" in capfd.readouterr().err

    def test_an_endpoint_that_is_no_url(self, hub, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "nonsense")
        assert self.refused(hub, ValueError).startswith("HF_ENDPOINT: nonsense is no URL of a hub: expected one like ")

    def test_no_connection(self, hub, unreachable):
        unreachable()
        assert f"{hub.url} can't be reached (ConnectionError)" in self.refused(hub, Unreachable)

    def test_a_connection_that_ends_between_two_files(self, hub, unreachable, tmp_path):
        repository = look_up("huggingface", NAME)
        unreachable()
        with pytest.raises(Unreachable, match="can't be reached"):
            fetch(repository, tmp_path / "fetched")

    def test_offline_by_order(self, hub, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert self.refused(hub, Unreachable) == f"{NAME}: not in the cache, and HF_HUB_OFFLINE is set: unset it to " \
                                                 "fetch the model"
        assert hub.requests == []

    def test_a_repository_without_weights(self, hub, source):
        for file in (WEIGHTS, "pytorch_model.bin"):
            (source / file).unlink()
        (source / "model.gguf").write_text("other weights")
        said = self.refused(hub, FileNotFoundError)
        assert said.startswith(f"{NAME}: no weights in this repository, expected model*.safetensors or ")

    def test_weights_without_a_config(self, hub, source):
        (source / "config.json").unlink()
        assert "no config.json in this repository" in self.refused(hub, FileNotFoundError)

    @pytest.mark.parametrize("kind", ["qwen2", "llama"])
    def test_a_model_that_is_no_qwen_of_the_first_generation(self, hub, other, kind):
        said = self.refused(hub, ValueError, other("a/b", **{"config.json": json.dumps({"model_type": kind})}))
        assert said == f"a/b: config.json: model_type: expected 'qwen' (the first generation), found '{kind}'"

    def test_one_that_is_quantized_in_a_way_that_is_not_read(self, hub, other, source):
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
        assert "a/awq: quantized by 'awq', expected 'gptq'" in self.refused(
            hub, ValueError, other("a/awq", **{"config.json": json.dumps(config)}))

    def test_a_full_disk(self, hub, monkeypatch):
        usage = namedtuple("usage", "total used free")(1, 1, 1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "the disk is full" in self.refused(hub, OSError)


def test_there_is_room_for_the_download_and_for_the_converted_copy(fetched, hub, source, monkeypatch):
    weights = (source / WEIGHTS).stat().st_size
    needed = []
    monkeypatch.setattr("qwen_mindspore.checkpoint.hub.check_disk", lambda _, count: needed.append(count))
    fetched()
    fetched()
    assert needed == [2 * weights, weights]


@pytest.mark.parametrize("text, is_name", [("Qwen/Qwen-1_8B-Chat", True), ("a/b.c", True), ("Qwen-7B", False),
                                           ("a/b/c", False), ("../b", False), ("a/..", False), ("a/", False),
                                           ("https://x/y", False), ("", False), ("a b/c", False)])
def test_what_may_be_a_name(text, is_name):
    assert is_hub_name(text) == is_name


class TestModelScope:
    """With what is called of the package in its place: it is no package of the tests."""

    def test_without_the_package_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "modelscope", None)
        with pytest.raises(ValueError, match=r"--hub modelscope needs modelscope: pip install "
                                             r"'qwen-mindspore\[modelscope\]'"):
            look_up("modelscope", NAME)

    @pytest.fixture
    def package(self, monkeypatch, source):
        """A modelscope that has the model."""
        class HubApi:
            def list_repo_files(self, name, kind, revision):
                if name != NAME:
                    raise package.NotExistError("404: record not found")
                return [types.SimpleNamespace(path=path.name, size=path.stat().st_size, sha256=sha256(path))
                        for path in source.iterdir() if path.is_file()]

        def model_file_download(name, file, revision, local_dir):
            shutil.copy(source / file, local_dir)

        package = types.ModuleType("modelscope")
        package.NotExistError = type("NotExistError", (Exception,), {})
        for name, content in (("modelscope", {}), ("modelscope.hub", {}), ("modelscope_hub", {}),
                              ("modelscope_hub.api", {"HubApi": HubApi}),
                              ("modelscope.hub.file_download", {"model_file_download": model_file_download})):
            module = package if name == "modelscope" else types.ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        return package

    def test_the_same_files_come_from_there(self, package, tmp_path, source):
        repository = look_up("modelscope", NAME)
        assert (repository.revision, repository.commit) == ("master", "master")
        fetch(repository, tmp_path / "fetched")
        assert {path.name for path in (tmp_path / "fetched").iterdir()} == {
            "config.json", "generation_config.json", "qwen.tiktoken", WEIGHTS}

    def test_a_name_that_it_does_not_know(self, package):
        with pytest.raises(FileNotFoundError, match="Qwen/Qwen-7b: ModelScope has no such model, or no revision v2 of "
                                                    "it: did you mean Qwen/Qwen-7B?"):
            look_up("modelscope", "Qwen/Qwen-7b", "v2")

    def test_whatever_else_goes_wrong_is_one_line(self, package, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("several\nlines")

        monkeypatch.setattr(sys.modules["modelscope_hub.api"].HubApi, "list_repo_files", fail)
        with pytest.raises(Unreachable, match=r"not fetched from ModelScope \(RuntimeError: several lines\)"):
            look_up("modelscope", NAME)


def test_the_hubs_are_those_that_the_options_name():
    assert list(HUBS) == ["huggingface", "modelscope"]
