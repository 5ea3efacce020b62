"""From a model's name, or a folder, to its checkpoint in the cache: once, resumed, and without a connection."""
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import DATA
from helpers.checkpoints import load_folder, random_tensors, same_bits, save
from helpers.gptq import random_model, settings, write_gptq_folder
from helpers.hub import COMMIT
from qwen_mindspore.checkpoint import by_name
from qwen_mindspore.checkpoint.by_name import find_checkpoint
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.hub import Unreachable

NAME = "Qwen/Qwen-tiny"
WEIGHTS = "model.safetensors"


def same(left, right):
    """Whether two folders have the same tensors."""
    left, right = load_folder(left), load_folder(right)
    return left.keys() == right.keys() and all(same_bits(left[name], right[name]) for name in left)


def place(tmp_path):
    return tmp_path / "cache/qwen-mindspore/hub/huggingface/Qwen--Qwen-tiny" / COMMIT


class TestNames:
    def test_a_name_becomes_the_checkpoint_that_the_converter_makes(self, hub, tmp_path, source):
        found = find_checkpoint(NAME)
        assert found.checkpoint == place(tmp_path) / "Qwen-tiny"
        assert same(found.checkpoint, convert_weight(source, tmp_path / "ms"))
        for name in ("config.json", "generation_config.json", "qwen.tiktoken"):
            assert (found.checkpoint / name).read_bytes() == (source / name).read_bytes()

    @pytest.mark.parametrize("name", ["gptq_int4", "gptq_int8"])
    def test_a_model_of_autogptq_stays_quantized(self, hub, tmp_path, name):
        found = find_checkpoint(f"Qwen/{name}")
        assert same(found.checkpoint, convert_weight(DATA / name, tmp_path / "ms"))
        assert json.loads((found.checkpoint / "config.json").read_text())["quantization"]["bits"] == int(name[-1])

    def test_the_second_time_the_hub_is_not_asked(self, hub, unreachable):
        first = find_checkpoint(NAME)
        before = len(hub.requests)
        assert find_checkpoint(NAME).checkpoint == find_checkpoint(NAME, hub="huggingface").checkpoint \
            == find_checkpoint(NAME, COMMIT).checkpoint == first.checkpoint
        assert len(hub.requests) == before
        unreachable()
        assert find_checkpoint(NAME, "main").checkpoint == first.checkpoint

    def test_the_download_is_removed_when_it_is_converted(self, hub, tmp_path):
        find_checkpoint(NAME)
        assert not (place(tmp_path) / "download").exists()

    def test_another_revision_of_the_same_commit_is_not_fetched_again(self, hub):
        find_checkpoint(NAME)
        find_checkpoint(NAME, "v1")
        assert len(hub.bodies(WEIGHTS)) == 1

    def test_nor_is_it_looked_up_again(self, hub, unreachable):
        found = find_checkpoint(NAME), find_checkpoint(NAME, "v1")
        unreachable()
        assert find_checkpoint(NAME).checkpoint == find_checkpoint(NAME, "v1").checkpoint == found[0].checkpoint

    @pytest.mark.parametrize("content", ["", "{}"])
    def test_a_damaged_entry_is_written_anew_and_nothing_is_fetched_again(self, hub, content, unreachable, tmp_path):
        find_checkpoint(NAME)
        (place(tmp_path) / "entry.json").write_text(content)
        found = find_checkpoint(NAME)
        unreachable()
        assert find_checkpoint(NAME).checkpoint == found.checkpoint
        assert len(hub.bodies(WEIGHTS)) == 1

    def test_a_model_of_which_a_file_is_missing_is_fetched_again(self, hub, tmp_path):
        found = find_checkpoint(NAME)
        next(found.checkpoint.glob("*.safetensors")).unlink()
        assert list(find_checkpoint(NAME).checkpoint.glob("*.safetensors"))
        assert len(hub.bodies(WEIGHTS)) == 2

    def test_no_name_at_all(self, hub):
        with pytest.raises(ValueError, match="^--model: expected a name, like Qwen/Qwen-7B-Chat, or a folder, found "
                                             "nothing$"):
            find_checkpoint("")

    def test_what_is_no_qwen_leaves_nothing(self, hub, other, tmp_path):
        with pytest.raises(ValueError, match="a/b: config.json: model_type"):
            find_checkpoint(other("a/b", **{"config.json": '{"model_type": "llama"}'}))
        assert not list((tmp_path / "cache").rglob("config.json"))

    def test_nor_does_a_gated_one(self, hub, tmp_path):
        hub.gated.add(NAME)
        with pytest.raises(PermissionError, match=f"{NAME} is gated"):
            find_checkpoint(NAME)
        assert not place(tmp_path).exists()

    def test_neither_a_folder_nor_a_name(self, hub):
        with pytest.raises(FileNotFoundError, match="^Qwen-14B: no such folder, and no name of a hub's model, which is "
                                                    "OWNER/NAME, like Qwen/Qwen-14B$"):
            find_checkpoint("Qwen-14B")


class TestInterruptions:
    @pytest.fixture
    def interrupted(self, hub, monkeypatch):
        """All is fetched, and the conversion was interrupted."""
        with monkeypatch.context() as context:
            def interrupt(*_, **__):
                raise KeyboardInterrupt

            context.setattr("qwen_mindspore.checkpoint.save._write_file", interrupt)
            with pytest.raises(KeyboardInterrupt):
                find_checkpoint(NAME)

    def test_in_the_conversion_nothing_is_fetched_again(self, interrupted, hub, source, tmp_path):
        found = find_checkpoint(NAME)
        assert len(hub.bodies(WEIGHTS)) == 1
        assert same(found.checkpoint, convert_weight(source, tmp_path / "ms"))

    def test_what_is_fetched_is_converted_without_a_connection(self, interrupted, unreachable):
        unreachable()
        assert find_checkpoint(NAME).checkpoint.is_dir()

    def test_in_the_download_what_there_is_is_kept(self, hub, unreachable, tmp_path):
        hub.break_after, hub.breaks, hub.on_sent = 1024, 1, lambda _: unreachable()
        for _ in range(2):
            with pytest.raises(Unreachable, match="can't be reached .* the same command resumes"):
                find_checkpoint(NAME)
        assert [path.stat().st_size for path in place(tmp_path).rglob("*.incomplete")] == [1024]

    def test_of_two_at_once_one_fetches_and_the_other_waits(self, hub, capfd):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(find_checkpoint, [NAME, NAME]))
        assert found[0].checkpoint == found[1].checkpoint and len(hub.bodies(WEIGHTS)) == 1
        waiting = f"model: {NAME}: another process is fetching or converting it; waiting\n"
        assert waiting in capfd.readouterr().err

    def test_a_download_that_was_not_removed_any_more_is(self, hub, tmp_path):
        find_checkpoint(NAME)
        (place(tmp_path) / "download").mkdir()
        find_checkpoint(NAME)
        assert not (place(tmp_path) / "download").exists()


class TestFolders:
    def test_one_of_hugging_face_is_converted_once(self, hub, source, tmp_path, monkeypatch):
        first = find_checkpoint(str(source))
        assert same(first.checkpoint, convert_weight(source, tmp_path / "ms"))
        assert first.checkpoint.name == "source" and tmp_path / "cache" in first.checkpoint.parents
        monkeypatch.setattr(by_name, "convert_weight", None)
        monkeypatch.chdir(source.parent)
        assert find_checkpoint("source").checkpoint == first.checkpoint
        assert hub.requests == []

    def test_again_when_its_files_have_changed(self, hub, source):
        find_checkpoint(str(source))
        changed = {name: tensor + 1 for name, tensor in random_tensors().items()}
        save(source / WEIGHTS, changed)
        os.utime(source / WEIGHTS, ns=(1, 1))
        after = load_folder(find_checkpoint(str(source)).checkpoint)
        assert same_bits(after["lm_head.weight"], changed["lm_head.weight"])

    def test_one_that_was_converted_is_taken_as_it_is(self, hub, source, tmp_path):
        ms = convert_weight(source, tmp_path / "ms")
        assert find_checkpoint(str(ms)).checkpoint == ms
        ckpt = convert_weight(source, tmp_path / "one" / "qwen.ckpt")
        assert find_checkpoint(str(ckpt)).checkpoint == ckpt

    def test_one_of_autogptq(self, hub, tmp_path):
        folder = write_gptq_folder(tmp_path / "gptq", random_model()[0], settings())
        found = find_checkpoint(str(folder))
        assert same(found.checkpoint, convert_weight(folder, tmp_path / "ms"))

    def test_without_conversion_it_is_taken_as_it_is(self, hub, source):
        assert find_checkpoint(str(source), convert=False).checkpoint == source

    def test_it_comes_before_a_name_of_the_hub(self, hub, source, tmp_path, monkeypatch):
        shutil.copytree(source, tmp_path / NAME)
        monkeypatch.chdir(tmp_path)
        find_checkpoint(NAME)
        assert hub.requests == []
        with pytest.raises(ValueError, match=f"{NAME} is on this disk: --revision goes with a hub's name"):
            find_checkpoint(NAME, "main")

    @pytest.mark.parametrize("file, content, said", [
        ("config.json", None, "config.json is missing: a model is a folder with config.json beside the weights"),
        ("config.json", '{"model_type": "llama"}', "config.json: model_type: expected 'qwen'"),
        (WEIGHTS, None, "no checkpoint here, expected|no .safetensors or"),
    ])
    def test_one_that_is_no_model(self, hub, source, file, content, said):
        (source / "pytorch_model.bin").unlink()
        (source / file).unlink()
        if content:
            (source / file).write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            find_checkpoint(str(source))
