"""The commands of a chat: what they say, what they change, and that a bad one changes nothing."""
import json

import pytest

from qwen_mindspore.chat import session as qwen_session
from qwen_mindspore.chat.chat import Reply, chat_settings
from qwen_mindspore.chat.session import (
    CLEAR_SCREEN,
    COMMAND_NAMES,
    Question,
    Session,
    load_conversation,
    save_conversation,
)
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.text.tokenizer import QwenTokenizer

SETTINGS = GenerationSettings(chat_format="chatml", max_new_tokens=20, stop_words_ids=[[1]])


@pytest.fixture
def session(monkeypatch):
    """A session whose answers are known: the number of turns before the question."""
    def stream_reply(model, tokenizer, query, history, system, settings, **generation):
        if query == "too long":
            raise ValueError("query: it has 9 tokens")
        text = f"answer {len(history)}"
        replies = [Reply(text[:count], count) for count in range(1, len(text))] + [Reply(text, len(text), "stop")]
        return (reply for reply in replies)

    monkeypatch.setattr(qwen_session, "stream_reply", stream_reply)
    return Session(None, None, SETTINGS)


def ask(session, *queries):
    for query in queries:
        list(session.ask(session.read(query)))


class TestQuestions:
    @pytest.mark.parametrize("line, question", [
        ("Hi", "Hi"), (" Hi  there \n", "Hi  there"), (" :) hello", ":) hello")])
    def test_what_does_not_begin_with_a_colon_is_one(self, session, line, question):
        read = session.read(line)
        assert isinstance(read, Question) and read == question

    def test_turns_are_kept(self, session):
        ask(session, "one", "two")
        assert session.history == [("one", "answer 0"), ("two", "answer 1")]

    def test_what_there_is_of_a_stopped_answer_is_kept(self, session):
        replies = session.ask("one")
        next(replies), next(replies)
        replies.close()
        assert session.history == [("one", "an")]
        session.ask("two").close()
        assert session.history == [("one", "an")], "nothing of an answer, no turn"

    def test_an_answer_that_fails_leaves_what_was_said(self, session, monkeypatch):
        def stream_reply(*_, **__):
            yield Reply("an", 1)
            raise FloatingPointError("the logits are not finite")

        ask(session, "one")
        monkeypatch.setattr(qwen_session, "stream_reply", stream_reply)
        with pytest.raises(FloatingPointError):
            ask(session, "two")
        assert session.history == [("one", "answer 0"), ("two", "an")]

    def test_an_answer_that_can_not_be_given_anew_leaves_the_one_that_was(self, session, monkeypatch):
        def stream_reply(*_, **__):
            raise FloatingPointError("the logits are not finite")
            yield

        ask(session, "one", "two")
        before = session.history
        with monkeypatch.context() as broken:
            broken.setattr(qwen_session, "stream_reply", stream_reply)
            with pytest.raises(FloatingPointError):
                ask(session, ":regenerate")
            assert session.history == before
            with pytest.raises(FloatingPointError):
                ask(session, "three")
        assert session.history == before
        session.ask(session.read(":regenerate")).close()
        assert session.history == before, "stopped before there was anything"
        session.history = [("one", "a"), ("too long", "b")]
        with pytest.raises(ValueError, match="query: it has 9 tokens"):
            session.ask(session.read(":regenerate"))
        assert session.history == [("one", "a"), ("too long", "b")]

    def test_what_can_not_be_asked_is_no_turn(self, session):
        with pytest.raises(ValueError, match="query: it has 9 tokens"):
            session.ask("too long")
        assert session.history == []

    def test_a_model_answers(self, build_tiny, tiny_hf):
        tokenizer = QwenTokenizer(str(tiny_hf))
        model = build_tiny(use_past=True, chat_format="chatml", seq_length=256)
        session = Session(model, tokenizer, chat_settings(QwenConfig(chat_format="chatml"), max_new_tokens=8))
        *_, reply = session.ask(session.read("Hi"))
        assert (reply.tokens, reply.finish_reason) == (8, "length")
        assert session.history == [("Hi", reply.text)]
        assert session.read(":stats").startswith("8 tokens, ")


class TestCommands:
    @pytest.mark.parametrize("names", [
        "help h", "exit quit q", "clear cl", "clear-history clear-his clh", "history his", "seed", "conf", "reset-conf",
        "system", "save", "load", "undo", "regenerate", "stats"])
    def test_the_commands_of_the_references_demo_and_some_more(self, names):
        assert {f":{name}" for name in names.split()} <= set(COMMAND_NAMES)

    def test_help_names_every_command_in_lines_that_fit(self, session):
        text = session.read(":help")
        assert all(name in text for name in COMMAND_NAMES)
        assert max(map(len, text.splitlines())) < 80

    @pytest.mark.parametrize("line, said", [
        (":hlep", ":hlep: no such command; did you mean :help?"), (":regen", "did you mean :regenerate?"),
        (":xyzzy", ":xyzzy: no such command; :help lists the commands"), (":", ": no such command"),
        (":) hello", "no such command"), (":undo 3", ":undo: expected nothing behind it, found '3'"),
        (":undo", ":undo: the conversation has not begun"), (":r", ":regenerate: the conversation has not begun"),
        (":stats maybe", ":stats: expected on, off or nothing, found 'maybe'"),
        (":save", ":save: expected the name of a file"), (":load", ":load: expected the name of a file")])
    def test_what_can_not_be_done_is_said_in_one_line(self, session, line, said):
        with pytest.raises(ValueError) as error:
            session.read(line)
        assert said in str(error.value) and "\n" not in str(error.value)

    def test_exit(self, session):
        assert (session.read(":q"), session.is_over) == ("", True)

    def test_clear_is_the_screens(self, session):
        ask(session, "one")
        assert session.read(":cl") == CLEAR_SCREEN and len(session.history) == 1

    def test_clear_history_begins_anew(self, session):
        ask(session, "one", "two")
        assert session.read(":clh") == "2 turns forgotten" and session.history == []

    def test_history_shows_the_conversation(self, session):
        ask(session, "one")
        assert session.read(":history") == "System: You are a helpful assistant.\nYou: one\nQwen: answer 0"

    def test_undo_takes_the_last_turn_back(self, session):
        ask(session, "one", "two")
        assert session.read(":undo") == "taken back: two"
        assert session.history == [("one", "answer 0")]

    def test_regenerate_asks_the_last_question_again(self, session):
        ask(session, "one", "two", ":regenerate")
        assert session.history == [("one", "answer 0"), ("two", "answer 1")]

    def test_system(self, session):
        assert session.read(":system Be  brief.") == session.read(":system") == "system message: Be  brief."
        assert session.system == "Be  brief."

    def test_stats(self, session):
        assert session.read(":stats") == "no answer yet"
        ask(session, "one")
        assert session.read(":stats").startswith("8 tokens, ")
        assert not session.show_stats
        session.read(":stats on")
        assert session.show_stats
        session.read(":stats off")
        assert not session.show_stats


class TestSettings:
    @pytest.mark.parametrize("line, name, value", [
        (":conf top_p=0.5", "top_p", 0.5), (":conf do_sample=true", "do_sample", True),
        (":conf do_sample = True", "do_sample", True), (":conf temperature=1e-2", "temperature", 0.01),
        (':conf stop_words=["\\n", "Human: "]', "stop_words", ("\n", "Human: ")), (":seed 7", "seed", 7),
        (":conf seed=7", "seed", 7), (":conf max_new_tokens=5", "max_new_tokens", 5)])
    def test_one_is_changed(self, session, line, name, value):
        session.read(line)
        assert session.settings == SETTINGS.override(**{name: value})

    def test_several_are_changed_at_once(self, session):
        assert session.read(":conf top_p = 0.5  top_k=3") == "top_k = 3\ntop_p = 0.5"
        assert session.settings == SETTINGS.override(top_p=0.5, top_k=3)

    @pytest.mark.parametrize("line, said", [
        (":conf top_p=3", "top_p: expected a number above 0 and up to 1, which is off, found 3"),
        (":conf top_k=5 top_p=3", "top_p: expected"), (":conf top_k=5 beams=3", "beams: no such setting"),
        (":conf topp=0.5", "topp: no such setting; did you mean top_p?"),
        (":conf top_p", "expected KEY=VALUE, found 'top_p'"),
        (":conf temperature=hot", "temperature: expected a number above 0, found 'hot'"),
        (":conf temperature=none", "temperature: expected"), (":seed soon", "seed: expected"),
        (":conf stop_words_ids=[[1]]", "no such setting")])
    def test_a_bad_one_leaves_all_as_they_were(self, session, line, said):
        with pytest.raises(ValueError) as error:
            session.read(line)
        assert said in str(error.value) and "\n" not in str(error.value)
        assert session.settings == SETTINGS

    @pytest.mark.parametrize("line", [":conf reset", ":reset-conf"])
    def test_reset(self, session, line):
        session.read(":conf top_p=0.5 seed=3")
        session.read(line)
        assert session.settings == SETTINGS

    def test_they_are_shown(self, session):
        shown = session.read(":conf").splitlines()
        assert "top_p = 1.0" in shown and "stop_words = []" in shown and "max_new_tokens = 20" in shown
        assert session.read(":seed") == "seed: none"
        assert session.read(":seed 5") == "seed: 5"
        assert session.read(":seed none") == "seed: none"


class TestFiles:
    def test_a_saved_conversation_goes_on_elsewhere(self, session, tmp_path):
        session.read(":system S")
        ask(session, "世界 one", "two")
        path = tmp_path / "my chat.json"
        assert session.read(f":save {path}") == f"2 turns saved to {path}"
        assert json.loads(path.read_text(encoding="utf-8"))["messages"][:2] == [
            {"role": "system", "content": "S"}, {"role": "user", "content": "世界 one"}]
        other = Session(None, None, SETTINGS)
        assert other.read(f":load {path}") == f"2 turns loaded from {path}"
        assert (other.system, other.history) == (session.system, session.history)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_conversation_without_a_system_message_has_the_usual_one(self, tmp_path):
        path = tmp_path / "chat.json"
        path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
        assert load_conversation(path) == ("You are a helpful assistant.", [("a", "b")])

    def test_what_is_no_conversation_is_not_overwritten(self, session, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("precious")
        with pytest.raises(ValueError, match="notes.txt: expected a new file or a saved conversation"):
            session.read(f":save {path}")
        assert path.read_text() == "precious"

    def test_a_saved_one_is(self, tmp_path):
        path = tmp_path / "chat.json"
        save_conversation(path, "S", [("a", "b")])
        save_conversation(path, "T", [])
        assert load_conversation(path) == ("T", [])

    def test_where_nothing_can_be_written_or_read_the_system_says_why(self, session, tmp_path):
        for line in (f":save {tmp_path}/nowhere/chat.json", f":load {tmp_path}/nowhere.json"):
            with pytest.raises(OSError, match="No such file"):
                session.read(line)

    @pytest.mark.parametrize("content, said", [
        ("{", "expected JSON of the form"), ("[1]", "expected JSON of the form"),
        ('{"messages": 1}', "expected a list"),
        ('{"messages": ["a"]}', "message 1: expected"), ('{"messages": [{"role": "user"}]}', "message 1: expected"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "an answer to each question"),
        (r'{"messages": [{"role": "user", "content": "a\ud83d"}]}', "message 1: character 2 is half a surrogate pair"),
        ('{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "a"}]}',
         "message 2: expected role 'user', found 'assistant'"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
         "message 2: expected role 'assistant', found 'user'")])
    def test_a_bad_file_is_named_and_the_conversation_stays(self, session, tmp_path, content, said):
        ask(session, "one")
        path = tmp_path / "chat.json"
        path.write_text(content)
        with pytest.raises(ValueError) as error:
            session.read(f":load {path}")
        assert str(path) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)
        assert session.history == [("one", "answer 0")]
