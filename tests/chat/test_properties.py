"""Whatever a chat is given: an answer, or one line that names the key; see helpers/properties.py."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.properties import arguments, python_values, tell, texts, tried
from qwen_mindspore.chat.chat import chat, chat_batch, chat_stream
from qwen_mindspore.chat.session import Session, load_conversation
from qwen_mindspore.generate.settings import ALLOWED, GenerationSettings
from qwen_mindspore.text.tokenizer import QwenTokenizer

NAMES = ("query", "queries", "histories", "history", "system", "message", "conversation", "chat_format")
TURNS = st.lists(st.tuples(texts(), texts()) | python_values(), max_size=3) | python_values()
GENERATION = arguments({*ALLOWED, "stream"} - {"max_new_tokens"}, most=2)


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, batch_size=3, chat_format="chatml", seq_length=128)


@tried(40)
@given(texts() | python_values(), TURNS, texts() | python_values(), GENERATION)
def test_a_chat(model, tokenizer, query, history, system, generation):
    for ask in (chat, lambda *args, **kwargs: list(chat_stream(*args, **kwargs))):
        try:
            answer = ask(model, tokenizer, query, history, system, max_new_tokens=2, **generation)
        except (ValueError, FloatingPointError) as error:
            tell(error, [*NAMES, *generation])
        else:
            assert isinstance(answer[0], str)


@tried(40)
@given(st.lists(texts(), max_size=3) | python_values(), st.none() | st.lists(TURNS, max_size=3) | python_values(),
       texts() | st.lists(texts(), max_size=3) | python_values(), GENERATION)
def test_a_batch(model, tokenizer, queries, histories, systems, generation):
    try:
        texts, after = chat_batch(model, tokenizer, queries, histories, systems, max_new_tokens=2, **generation)
    except (ValueError, FloatingPointError) as error:
        return tell(error, [*NAMES, *generation])
    assert len(texts) == len(after) == len(queries)
    return None


COMMANDS = ["conf", "seed", "system", "history", "undo", "stats", "regenerate"]
LINES = st.builds(":{} {}".format, st.sampled_from(COMMANDS),
                  st.builds("{}={}".format, st.sampled_from(sorted(ALLOWED)), texts()) | texts()) | texts()


@tried(150)
@given(st.lists(LINES, max_size=4))
def test_what_is_typed(lines):
    session = Session(None, None, GenerationSettings(chat_format="chatml"))
    session.history = [("a", "b")]
    for line in lines:
        before = session.settings
        try:
            assert isinstance(session.read(line), str)
        except ValueError as error:
            assert session.settings == before and len(str(error).splitlines()) == 1


@tried(60)
@given(python_values(), st.binary(max_size=40))
def test_a_saved_conversation(tmp_path_factory, content, data):
    import json
    path = tmp_path_factory.mktemp("saved") / "chat.json"
    for written in (data, json.dumps({"messages": content}, default=str).encode()):
        path.write_bytes(written)
        try:
            system, history = load_conversation(path)
        except ValueError as error:
            tell(error, [str(path)])
        else:
            assert isinstance(system, str) and isinstance(history, list)
