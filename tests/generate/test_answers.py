"""From messages to a prompt, from an engine's outputs to an answer: the one way that all who answer go."""
import random
from types import SimpleNamespace

import pytest

from helpers.batch import FakeEngine
from qwen_mindspore.batch.records import Record
from qwen_mindspore.batch.worker import RowOptions, Worker, answer_all
from qwen_mindspore.chat.chat import chat
from qwen_mindspore.generate.answers import Answer, Answers, prompt_of, room_of, with_stop_words
from qwen_mindspore.generate.engine import Output
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.chatml import as_messages, make_context
from qwen_mindspore.text.tokenizer import QwenTokenizer

CHAT, RAW = GenerationSettings(chat_format="chatml", max_new_tokens=50), GenerationSettings()


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


def size(seq_length, cache_blocks=100, block_size=16):
    return SimpleNamespace(seq_length=seq_length, cache_blocks=cache_blocks, block_size=block_size)


def user(text):
    return {"role": "user", "content": text}


# Prompts

def test_the_room_is_what_the_model_and_its_cache_hold():
    assert (room_of(size(1000)), room_of(size(2000))) == (1000, 1600)


def test_a_prompt_is_that_of_make_context(tokenizer):
    history = [("a<|im_end|>", "b"), ("c", "d")]
    messages = [*as_messages(history, "s"), user("e")]
    assert prompt_of(messages, CHAT, tokenizer, size(1000)) == make_context(tokenizer, "e", history, "s")[1]
    narrow = CHAT.override(max_window_size=30)
    assert prompt_of(messages, narrow, tokenizer, size(1000)) == make_context(tokenizer, "e", history, "s", 30)[1]
    assert prompt_of([user("e")], CHAT, tokenizer, size(1000)) == make_context(tokenizer, "e")[1]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("new_tokens", [10, 1000])
def test_old_turns_make_room_for_the_answer_or_a_quarter_of_the_room(tokenizer, seed, new_tokens):
    chance = random.Random(seed)
    history = [("a" * chance.randint(0, 60), "b" * chance.randint(0, 60)) for _ in range(30)]
    settings, longest = CHAT.override(max_new_tokens=new_tokens), 400 - min(new_tokens, 100)
    prompts = [make_context(tokenizer, "e", history[i:], "s", 10_000)[1] for i in range(31)]
    expected = next(prompt for prompt in prompts if len(prompt) <= longest)
    assert prompt_of([*as_messages(history, "s"), user("e")], settings, tokenizer, size(1000, 25)) == expected


def test_a_text_is_continued_as_it_is_and_control_tokens_in_it_stay_text(tokenizer):
    text = " Human:<|endoftext|> "
    assert prompt_of([user(text)], RAW, tokenizer, size(100)) == list(text.encode())
    assert prompt_of([user(text)], RAW, tokenizer, size(100), parse_special=True) == [
        *b" Human:", tokenizer.eod_id, *b" "]


@pytest.mark.parametrize("messages, settings, said", [
    ([], CHAT, r"messages: expected a list of {role, content}, found \[\]"), ("Hi", CHAT, "found 'Hi'"),
    (["Hi"], CHAT, "message 1: expected a role of system, user, assistant and text as content, found 'Hi'"),
    ([user("a"), {"role": "bot", "content": "b"}], CHAT, "message 2: expected a role"),
    ([user("a\ud83d")], CHAT, "message 1: content: character 2 is half a surrogate pair"),
    ([user(3)], CHAT, "message 1: .*found {'role': 'user', 'content': 3}"),
    ([user("a"), {"role": "system", "content": "b"}], CHAT, "message 2: expected the system message to be the first"),
    ([{"role": "system", "content": "b"}], CHAT, "expected a question, found none"),
    ([user("a"), user("b")], RAW, r"one user's text to continue \(chat_format raw\), found user, user"),
])
def test_what_is_no_conversation_is_named(tokenizer, messages, settings, said):
    with pytest.raises(ValueError, match=said):
        prompt_of(messages, settings, tokenizer, size(1000))


def test_control_tokens_are_never_parsed_in_a_conversation(tokenizer):
    with pytest.raises(ValueError, match="parse_special: in ChatML"):
        prompt_of([user("a")], CHAT, tokenizer, size(1000), parse_special=True)


def test_what_ends_an_answer(tokenizer):
    ends = [(tokenizer.im_end_id,), (tokenizer.im_start_id,), (tokenizer.eod_id,)]
    assert with_stop_words(CHAT.override(stop_words_ids=[[1, 2]]), tokenizer).stop_words_ids == ((1, 2), *ends)
    assert with_stop_words(RAW, tokenizer).stop_words_ids == ((tokenizer.eod_id,),)


# Answers

def grown(tokenizer, settings, *outputs):
    """An answer, and whether its request must be cancelled after each output."""
    answer = Answer(0, [1, 2, 3], with_stop_words(settings, tokenizer), tokenizer)
    return answer, [answer.add(output) for output in outputs]


def outputs(text, reason=None):
    return [Output(0, byte) for byte in text[:-1]] + [Output(0, text[-1], reason)]


def state(answer):
    return answer.text, answer.tokens, answer.finish_reason


def test_an_answer_grows_and_ends_for_the_engines_reason(tokenizer):
    answer, cancels = grown(tokenizer, CHAT, *outputs(b" ab "))
    assert state(answer) == ("ab", 4, None) and answer.prompt_tokens == 3 and not any(cancels)
    assert state(grown(tokenizer, RAW, *outputs(b" ab "))[0]) == (" ab ", 4, None)
    assert state(grown(tokenizer, RAW, *outputs(b" ab ", "length"))[0]) == (" ab ", 4, "length")
    ended = [*outputs(b"ab"), Output(0, tokenizer.eod_id, "stop", 1)]
    assert state(grown(tokenizer, RAW, *ended)[0]) == ("ab", 3, "stop")


def test_a_stop_string_ends_an_answer_before_the_engine_knows(tokenizer):
    settings = RAW.override(stop_words=["STOP"])
    answer, cancels = grown(tokenizer, settings, *outputs(b"ab STOP"))
    assert state(answer) == ("ab ", 7, "stop") and cancels == [False] * 6 + [True]
    answer, cancels = grown(tokenizer, settings, *outputs(b"ab STOP", "length"))
    assert state(answer) == ("ab ", 7, "stop") and not any(cancels), "it has ended there, too"
    answer, _ = grown(tokenizer, settings, *outputs(b"ab STO", "length"))
    assert state(answer) == ("ab STO", 6, "length"), "what might have become a stop word is text"


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_an_answer_that_comes_to_no_end_keeps_its_text(tokenizer, reason):
    error = RuntimeError("the kernel failed") if reason == "error" else None
    answer, cancels = grown(tokenizer, RAW, *outputs(b"ab\xe4"), Output(0, None, reason, error=error))
    assert state(answer) == ("ab\N{REPLACEMENT CHARACTER}", 3, reason)
    assert answer.error is error and not any(cancels)


def test_answers_are_those_of_their_requests(tokenizer):
    engine = FakeEngine(max_batch=2)
    answers = Answers(engine, tokenizer)
    texts = {i: f"text {i}" for i in range(5)}
    asked = {i: answers.add(list(text.encode()), RAW, i) for i, text in texts.items()}
    stopped = answers.add(list(b"abcdefgh"), RAW.override(stop_words=["ed"]), "stopped")
    ended = []
    while answers.has_work:
        ended += [answer for answer in answers.step() if answer.finish_reason]
    assert {answer.id for answer in ended} == {*range(5), "stopped"} and len(ended) == 6
    assert [asked[i].text for i in range(5)] == [text[::-1] for text in texts.values()]
    assert state(stopped) == ("hgf", 5, "stop") and not answers.active
    assert answers.tokens == sum(answer.tokens for answer in ended)
    assert engine.step() == [] or not engine.has_work


def test_all_answers_may_be_cancelled(tokenizer):
    engine = FakeEngine()
    answers = Answers(engine, tokenizer)
    for i in range(3):
        answers.add([65] * 5, RAW, i)
    answers.step()
    answers.cancel_all()
    assert not answers.has_work and not engine.has_work


@pytest.mark.parametrize("chat_format", ["raw", "chatml"])
def test_chat_and_batch_answer_alike(build_tiny, tokenizer, chat_format):
    model = build_tiny(use_past=True, chat_format=chat_format, seq_length=256)
    settings = GenerationSettings(chat_format=chat_format, max_new_tokens=20)
    for text in ("Why?", " Human: <|im_start|>", "a<|endoftext|>b "):
        said, _ = chat(model, tokenizer, text, settings=settings, chat_format=chat_format)
        worker = Worker(model.chat_engine, tokenizer, settings, RowOptions())
        row = [result for results, _ in answer_all(worker, [Record(1, {"prompt": text})]) for result in results]
        assert row[0].content["response"] == said


def test_what_a_stop_string_ended_is_given_back_by_a_last_step(tokenizer):
    engine = FakeEngine(seq_length=100)
    answers = Answers(engine, tokenizer)
    answer = answers.add(list(b"dcba"), RAW.override(stop_words=["bc"]))
    while answers.has_work:
        answers.step()
    assert (answer.text, answer.finish_reason, answer.stop_word) == ("a", "stop", "bc") and not engine.requests


def test_an_answer_may_be_cancelled(tokenizer):
    answers = Answers(FakeEngine(), tokenizer)
    answer = answers.add(list(b"dcba"), RAW)
    answers.cancel(answer.id)
    answers.cancel("nobody")
    while answers.has_work:
        answers.step()
    assert (answer.finish_reason, answer.text, answers.active) == ("cancelled", "", {})


@pytest.mark.parametrize("strip, text", [(None, "a"), (True, "a"), (False, " a ")])
def test_white_space_around_a_chats_answer_is_cut_unless_it_goes_on_with_a_text(tokenizer, strip, text):
    answers = Answers(FakeEngine(), tokenizer)
    answer = answers.add(list(b" a "), CHAT, strip=strip)
    while answers.has_work:
        answers.step()
    assert answer.text == text and len(answer.token_ids) == answer.tokens == 4
