"""The terminal chat: in a pipe, at a terminal, and what it says when it can't begin."""
import io
import subprocess
import sys

import pytest

from helpers import ROOT, terminals
from qwen_mindspore.chat.chat import Reply, chat_batch
from qwen_mindspore.chat.session import Question, Session
from qwen_mindspore.chat.terminal import UNPRINTABLE
from qwen_mindspore.cli.chat import Pipe, main, parse_args, talk
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.tokenizer import QwenTokenizer

PROGRAM = ROOT / "research/qwen/run_qwen_7b_chat.py"
LONG = {"seq_length": 32768, "max_position_embeddings": 32768, "use_dynamic_ntk": False, "use_logn_attn": False}


@pytest.fixture(scope="module")
def answers(build_tiny, tiny_hf):
    """A function of conversations (queries, the last to be answered): the answers, with 12 tokens."""
    tokenizer, model = QwenTokenizer(str(tiny_hf)), build_tiny(use_past=True, chat_format="chatml", **LONG)

    def answer(queries, histories):
        return chat_batch(model, tokenizer, queries, histories, max_new_tokens=12, eos_token_id=[])[0]

    return answer


@pytest.mark.process
class TestPipe:
    @pytest.fixture(scope="class")
    def result(self, tmp_path_factory, tiny_yaml, tiny_checkpoint):
        """A run from an empty directory."""
        folder = tmp_path_factory.mktemp("pipe")
        lines = ["Hi", "", "And \\", "now?", ":history", ":hstory", ":clear", " :)", ":stats", "end"]
        command = [sys.executable, PROGRAM, "--config", tiny_yaml("chatml", **LONG), "--load_checkpoint",
                   tiny_checkpoint, "--max_new_tokens", "12", "--stats"]
        result = subprocess.run(list(map(str, command)), input="\n".join(lines), cwd=folder, capture_output=True,
                                encoding="utf-8", timeout=300, check=False)
        return result, list(folder.iterdir())

    @pytest.fixture(scope="class")
    def expected(self, answers):
        history, texts = [], []
        for query in ("Hi", "And \nnow?", ":)", "end"):
            texts += answers([query], [history])
            history = [*history, (query, texts[-1])]
        return texts

    def test_standard_output_has_the_answers_and_nothing_else(self, result, expected):
        assert result[0].stdout == "".join(text + "\n" for text in expected)

    def test_what_commands_say_goes_to_standard_error(self, result):
        assert "You: Hi\nQwen: " in result[0].stderr and "12 tokens, " in result[0].stderr
        assert result[0].stderr.count("[12 tokens, ") == 4, "figures after each answer"
        assert result[0].stderr.count("[cut off after 12 tokens; :conf max_new_tokens=N allows more]") == 4
        assert "\x1b" not in result[0].stderr and "WARNING" not in result[0].stderr

    def test_a_line_that_can_not_be_done_is_named_and_the_rest_goes_on(self, result):
        assert "run_qwen_7b_chat: line 6: :hstory: no such command; did you mean :history?\n" in result[0].stderr
        assert result[0].returncode == 1

    def test_nothing_is_left_behind(self, result):
        assert result[1] == []


def failing(text):
    """Replies that come to an end before the answer does."""
    yield Reply(text, 1)
    raise FloatingPointError("the logits are not finite")


def test_in_a_pipe_an_answer_that_fails_does_not_run_into_the_next():
    out = io.StringIO()
    pipe = Pipe(out)
    for text in ("", "begun"):
        with pytest.raises(FloatingPointError):
            pipe.answer(failing(text))
    pipe.answer(reply for reply in [Reply("next", 1, "stop")])
    assert out.getvalue() == "begun\nnext\n"


def piped(content, monkeypatch):
    """The lines that a pipe gives, and the pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    pipe = Pipe(io.StringIO())
    return list(pipe.lines()), pipe


def test_a_pipes_lines_begin_behind_the_byte_order_mark_and_end_where_lines_end(monkeypatch):
    lines, pipe = piped("\ufeffone\u2028more\r\ntwo\x0c\\\nthree\u0085\n\ufefffour".encode(), monkeypatch)
    assert lines == ["one\u2028more", "two\x0c\nthree\u0085", "\ufefffour"]
    assert not pipe.has_failed


def test_a_line_of_a_pipe_that_is_not_utf8_is_named_and_left_out(monkeypatch, capsys):
    lines, pipe = piped(b"one\nca" + b"f\xe9\nthree\na\0b\nfive", monkeypatch)
    assert lines == ["one", "three", "five"] and pipe.has_failed
    assert capsys.readouterr().err == ("run_qwen_7b_chat: line 2: not UTF-8 (byte 3): convert it\n"
                                       "run_qwen_7b_chat: line 4: not a text (byte 1 is 0): expected UTF-8\n")


def test_a_pipe_in_another_encoding_is_refused_as_a_whole(monkeypatch):
    with pytest.raises(ValueError, match="standard input: expected UTF-8, found UTF-16: save it as UTF-8"):
        piped("one\ntwo".encode("utf-16"), monkeypatch)


class Console:
    """A console that remembers."""

    def __init__(self, *lines):
        self.typed, self.seen = lines, []

    def lines(self):
        return iter(self.typed)

    def answer(self, replies):
        *_, reply = replies
        self.seen.append(reply.text)
        return reply

    def say(self, text):
        self.seen.append(f"said {text}")

    def complain(self, error):
        self.seen.append(f"error {error}")


class TestTalk:
    failure = None

    @pytest.fixture
    def session(self, monkeypatch):
        session = Session(None, None, GenerationSettings(chat_format="chatml"))
        monkeypatch.setattr(session, "ask", self.ask)
        self.session = session
        return session

    def ask(self, question):
        assert isinstance(question, Question)
        if question == "bad":
            raise ValueError("too long")
        if isinstance(self.failure, Exception) and question == "fail":
            raise self.failure
        self.session.history = [*self.session.history, (question, "a")]
        return iter([Reply(f"{question} {len(self.session.history)}", 1, "stop" if question != "cut" else "length")])

    def test_lines_are_questions_and_commands_until_exit(self, session):
        console = Console("one", " ", "two", "bad", ":seed 3", ":nope", "three", ":exit", "four")
        talk(session, console)
        assert console.seen == ["one 1", "two 2", "error too long", "said seed: 3",
                                "error :nope: no such command; :help lists the commands", "three 3"]

    def test_independent_questions_begin_anew(self, session):
        console = Console("one", "two")
        talk(session, console, independent=True)
        assert console.seen == ["one 1", "two 1"]

    @pytest.mark.parametrize("failure", [FloatingPointError("not finite"), RuntimeError("the kernel failed")])
    def test_an_answer_that_fails_is_told_and_the_conversation_goes_on(self, session, failure):
        self.failure = failure
        console = Console("one", "fail", "two", ":history")
        talk(session, console)
        assert console.seen[:3] == ["one 1", f"error {failure}", "two 2"]
        assert console.seen[3].count("You: ") == 2

    def test_regenerate_asks_again(self, session):
        console = Console("one", ":regenerate")
        talk(session, console)
        assert console.seen == ["one 1", "one 1"]

    def test_an_answer_cut_off_is_said_to_be(self, session):
        console = Console("cut")
        talk(session, console)
        assert console.seen[1] == "said [cut off after 1 tokens; :conf max_new_tokens=N allows more]"


@pytest.mark.process
@pytest.mark.parametrize("backend", ["tmux", "pty"])
def test_a_session_in_a_terminal(backend, tmp_path, tiny_yaml, tiny_checkpoint, answers):
    if backend == "tmux" and not terminals.HAS_TMUX:
        pytest.skip("tmux is not installed; the same session runs in a pty")
    folder, state = tmp_path / "empty", tmp_path / "state"
    folder.mkdir()
    history = state / "qwen-mindspore/chat_history"
    history.parent.mkdir(parents=True)
    history.write_text("\n# 2023-11-30 00:00:00.000000\n+typed long ago\n")
    command = [sys.executable, PROGRAM, "--config", tiny_yaml("chatml", **LONG), "--load_checkpoint", tiny_checkpoint,
               "--max_new_tokens", "12"]
    start = {"tmux": terminals.Tmux, "pty": terminals.Pty}[backend]
    environment = {"XDG_STATE_HOME": str(state), "LOG_MF_PATH": str(tmp_path / "log"), "LANG": "C.UTF-8"}
    with start(command, folder, environment) as terminal:
        screen = terminal.wait_for("\nYou:")
        assert screen.splitlines()[:3] == ["ms on the CPU. :help lists the commands, Ctrl-D leaves.", "", "You:"], \
            "nothing but a greeting"

        def enter(line, until):
            terminal.send(line, "Enter")
            return terminal.wait_for(until)

        def drop(line):
            """Leave a line: what is typed before the next prompt is there, the terminal itself would take."""
            terminal.send("C-c")
            terminal.wait_for(f"{line}\nYou:")

        screen = enter("你好", "[cut off after 12 tokens; :conf max_new_tokens=N allows more]\nYou:")
        shown = screen.partition("Qwen: ")[2].partition("[cut off")[0]
        expected, = answers(["你好"], [None])
        assert "".join(shown.split()) == "".join(expected.translate(UNPRINTABLE).split())
        assert "You: 你好\n" in screen

        enter(":conf max_new_tokens=30000", "max_new_tokens = 30000\nYou:")
        before = enter("Tell me more", "You: Tell me more\nQwen: ")
        terminal.wait_until(lambda screen: screen != before, "more of the answer")
        terminal.send("C-c")
        screen = terminal.wait_for("[stopped]\nYou:")
        assert "^C" not in screen

        terminal.send(":clear", "Enter")
        terminal.wait_until(lambda screen: "[stopped]" not in screen, "a clear screen")
        enter(":hlep", "You: :hlep\n:hlep: no such command; did you mean :help?\nYou:")
        screen = enter(":help", "Ctrl-D leaves.\nYou:")
        assert screen.startswith("You: :hlep\n:hlep: no such command; did you mean :help?\nYou: :help\n  :help :h ")
        terminal.send("Up", "Up")
        terminal.wait_for("Ctrl-D leaves.\nYou: :hlep")

        drop("Ctrl-D leaves.\nYou: :hlep")
        terminal.send(":seed \\", "Enter", "7", "Enter")
        terminal.wait_for("You: :seed\n...  7\nseed: 7\nYou:")
        terminal.send(*["Up"] * 12)
        terminal.wait_for("You: typed long ago")
        drop("You: typed long ago")
        terminal.send("two", "M-Enter", "lines")
        terminal.wait_for("You: two\n...  lines")
        drop("You: two\n...  lines")
        terminal.send("C-d")
        terminal.wait_for("exit code 0")
    assert list(folder.iterdir()) == []
    assert "+你好\n" in history.read_text(encoding="utf-8")


class TestBeginning:
    @pytest.mark.parametrize("arguments, said", [
        (["--load_checkpoint", "missing.ckpt"], "missing.ckpt: no such file"),
        (["--top_p", "3"], "top_p: expected a number above 0 and up to 1, which is off, found 3"),
        (["--config", "RAW"], "chat_format: expected 'chatml', found 'raw': by its config this is a base model"),
    ])
    def test_what_can_not_run_ends_in_one_clear_line_before_a_model_is_loaded(
            self, arguments, said, tiny_yaml, tiny_checkpoint, capfd, monkeypatch):
        monkeypatch.setattr("qwen_mindspore.cli.chat.build_model", None)
        arguments = [tiny_yaml("raw") if argument == "RAW" else argument for argument in arguments]
        for option, value in (("--config", tiny_yaml("chatml")), ("--load_checkpoint", str(tiny_checkpoint))):
            arguments += [] if option in arguments else [option, value]
        assert main(arguments) == 1
        out, err = capfd.readouterr()
        waiting, told = err.splitlines()
        assert out == "" and waiting == "run_qwen_7b_chat: loading the model ..."
        assert told.startswith("run_qwen_7b_chat: ") and said in told

    def test_the_7b_chat_is_what_is_talked_to_by_default(self):
        assert parse_args([]).config.endswith("predict_qwen_7b_chat.yaml")
