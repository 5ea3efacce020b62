"""`--model NAME`, as a new user types it: from an empty cache to an answer, killed on the way, and what can't be."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.hub import COMMIT, serving
from qwen_mindspore.chat import chat as generate_chat
from qwen_mindspore.checkpoint.by_name import find_checkpoint
from qwen_mindspore.cli import batch, benchmark, chat, perplexity, predict, quantize
from qwen_mindspore.text.tokenizer import QwenTokenizer

NAME = "Qwen/Qwen-1_8B-Chat"
WEIGHTS = "model.safetensors"
QUESTION = "Hi?"  # a byte is a token, and the golden model holds 64

# The command, with small pieces of a download; with KILL in the environment it is killed while it writes weights.
COMMAND = """
import os, signal, sys
import huggingface_hub.constants
from qwen_mindspore.checkpoint import save
from qwen_mindspore.cli.main import main

def killed(file, *_):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16
if os.environ.get("KILL"):
    save.write_safetensors = killed
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tiny_hf, tmp_path_factory):
    """The golden model as a chat model."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    shutil.copytree(tiny_hf, folder)
    (folder / "generation_config.json").write_text('{"chat_format": "chatml", "max_new_tokens": 8}')
    return folder


@pytest.mark.process
class TestFromAnEmptyCache:
    """Killed in the download, then in the conversion; then there is an answer."""

    @pytest.fixture(scope="class")
    def story(self, folder, tmp_path_factory):
        home, here = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("here")
        place = home / f".cache/qwen-mindspore/hub/huggingface/Qwen--Qwen-1_8B-Chat/{COMMIT}"
        story = {"size": (folder / WEIGHTS).stat().st_size, "here": here, "place": place}

        def run(hub, **environment):
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "HF_"))}
            command = [sys.executable, "-c", COMMAND, "chat", "--model", NAME, "--system", ""]
            process = subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, encoding="utf-8", env={
                                           **kept, "HOME": str(home), "LOG_MF_PATH": str(home / "log"),
                                           "HF_ENDPOINT": hub.url, **environment})
            story["process"] = process
            answers, said = process.communicate(f"{QUESTION}\n", timeout=300)
            return process.returncode, answers, said, sorted(path.name for path in place.iterdir())

        with serving({NAME: folder}) as hub:
            def kill(sent):
                if sent > story["size"] // 2:
                    hub.on_sent = None
                    while not any(path.stat().st_size for path in place.rglob("*.incomplete")):
                        time.sleep(0.01)  # what was sent is on its way
                    os.kill(story["process"].pid, signal.SIGKILL)

            hub.on_sent = kill
            story["download"] = run(hub)
            story["conversion"] = run(hub, KILL="1")
            story["bodies"] = hub.bodies(WEIGHTS)
            story["left"] = [path.name for path in place.glob(".*.new-*/*")]
            story["answer"] = run(hub)
            story["bodies in the end"] = hub.bodies(WEIGHTS)
        return story

    def test_a_download_that_was_killed_goes_on_where_it_was(self, story):
        assert story["download"][0] == story["conversion"][0] == -signal.SIGKILL
        (first, before), (resumed, after) = story["bodies"]
        assert first == 0 and 0 < resumed <= before, "it asked for the rest"
        assert resumed + after == story["size"], "and for no byte of what was written"
        assert "of which " in story["conversion"][2]

    def test_a_conversion_that_was_killed_leaves_nothing_half_made(self, story):
        scratch, *files = story["conversion"][3]
        assert scratch.startswith(".Qwen-1_8B-Chat.new-") and files == ["download", "entry.json", "lock"]
        assert any(name.endswith(".safetensors") for name in story["left"]), "that was in the middle of it"

    def test_the_same_command_ends_in_an_answer_and_nothing_is_fetched_twice(self, story, folder, build_tiny):
        code, answers, said, files = story["answer"]
        assert code == 0, said
        tokenizer = QwenTokenizer(folder / "qwen.tiktoken")
        model = build_tiny(chat_format="chatml", use_past=True)
        expected, _ = generate_chat.chat(model, tokenizer, QUESTION, system="", max_new_tokens=8)
        assert answers == expected + "\n"
        assert story["bodies in the end"] == story["bodies"]
        assert files == ["Qwen-1_8B-Chat", "config.yaml", "entry.json", "lock"]

    def test_the_model_is_there_when_the_hub_is_not(self, story, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(story["place"].parents[4]))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert find_checkpoint(NAME).checkpoint == story["place"] / "Qwen-1_8B-Chat"

    def test_nothing_is_left_in_the_working_directory(self, story):
        assert list(story["here"].iterdir()) == []


@pytest.fixture
def settled(monkeypatch):
    """Names are found at once: what was looked up."""
    calls = []

    def find(*arguments):
        calls.append(arguments)
        return "found.yaml", "found"

    monkeypatch.setattr("qwen_mindspore.generate.by_name.find_model", find)
    return calls


def stop(monkeypatch, place, seen):
    """Let a command end where its work begins, and keep its options."""
    def end(args, *_):
        seen.append((str(args.config), str(args.load_checkpoint)))
        raise ValueError("stop")

    monkeypatch.setattr(place, end)


COMMANDS = {
    "chat": (chat, [], "qwen_mindspore.cli.chat.build_session"),
    "predict": (predict, ["--predict_data", "Hi"], "qwen_mindspore.cli.predict.predict"),
    "batch": (batch, ["--input", "in", "--output", "out"], "qwen_mindspore.batch.run.generate"),
    "perplexity": (perplexity, ["--data", "text"], "qwen_mindspore.evaluate.perplexity.measure"),
    "benchmark": (benchmark, [], "qwen_mindspore.cli.benchmark.benchmark"),
}


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    @pytest.mark.parametrize("given, config", [([], "found.yaml"), (["--config", "own.yaml"], "own.yaml")])
    def test_takes_a_name_for_config_and_checkpoint_and_a_config_wins(self, name, given, config, settled, monkeypatch):
        command, options, place = COMMANDS[name]
        seen = []
        stop(monkeypatch, place, seen)
        assert command.main([*options, "--model", NAME, "--hub", "huggingface", "--revision", "v1", *given]) == 1
        assert seen == [(config, "found")] and settled == [(NAME, "v1", "huggingface")]

    @pytest.mark.parametrize("option, value", [("--hub", "modelscope"), ("--revision", "v1")])
    def test_a_hub_or_a_revision_alone_is_refused(self, name, option, value, monkeypatch, capfd):
        command, options, place = COMMANDS[name]
        stop(monkeypatch, place, [])
        assert command.main([*options, option, value]) == 1
        assert f"{option} goes with --model NAME\n" in capfd.readouterr().err

    def test_a_model_and_a_checkpoint_contradict_each_other(self, name, capfd):
        command, options, _ = COMMANDS[name]
        with pytest.raises(SystemExit):
            command.main([*options, "--model", NAME, "--load_checkpoint", "c"])
        assert "--load_checkpoint" in capfd.readouterr().err.splitlines()[-1]


class TestQuantize:
    def test_a_folder_is_read_as_it_is(self, tiny_hf, tmp_path):
        assert quantize.main(["--model", str(tiny_hf), "--method", "rtn", "--group_size", "16", "--output",
                              str(tmp_path / "int4")]) == 0
        assert (tmp_path / "int4/config.json").is_file()

    def test_a_model_or_a_checkpoint_is_needed(self, capfd):
        with pytest.raises(SystemExit):
            quantize.main(["--method", "rtn", "--output", "out"])
        assert "one of the arguments --load_checkpoint --model is required" in capfd.readouterr().err


class TestBenchmark:
    def test_a_folder_of_hugging_face_is_what_peers_load_as_well(self, tiny_hf, monkeypatch):
        seen = []
        monkeypatch.setattr("qwen_mindspore.cli.benchmark.benchmark", lambda args: seen.append(args.hf) or 1 / 0)
        assert benchmark.main(["--model", str(tiny_hf), "--vs", "torch"]) == 1
        assert seen == [tiny_hf]

    def test_peers_have_no_folder_to_load_of_a_name(self, settled, capfd):
        assert benchmark.main(["--model", NAME, "--vs", "torch"]) == 1
        assert "--vs torch loads a Hugging Face folder: give --hf" in capfd.readouterr().err

    @pytest.mark.parametrize("options", [["--random", "1.8B"], ["--hf", "folder"]])
    def test_another_model_beside_it_is_refused(self, options, capfd):
        with pytest.raises(SystemExit):
            benchmark.main(["--model", NAME, *options])
        assert "takes no" in capfd.readouterr().err


def test_a_name_that_can_not_be_is_one_line_before_anything_is_loaded(capfd, monkeypatch):
    monkeypatch.setattr("qwen_mindspore.cli.chat.build_session", None)
    assert chat.main(["--model", "Qwen-7B"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err == ("run_qwen_7b_chat: Qwen-7B: no such folder, and no name of a hub's model, which is "
                                 "OWNER/NAME, like Qwen/Qwen-7B\n")
