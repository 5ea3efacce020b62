"""From rows to answers: how a row is read, and that rows do not depend on one another."""
import random

import pytest

from helpers.batch import FakeEngine
from qwen_mindspore.batch.journal import ANSWER, ERROR
from qwen_mindspore.batch.records import Record
from qwen_mindspore.batch.worker import RowOptions, Worker, answer_all
from qwen_mindspore.common.json_text import Number
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.chatml import make_context
from qwen_mindspore.text.tokenizer import QwenTokenizer

CHAT, RAW = GenerationSettings(chat_format="chatml"), GenerationSettings()


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture
def answer(tokenizer):
    """A function that answers rows, given by their columns, and gives {number: Result}."""
    def run(*rows, settings=RAW, engine=None, **options):
        worker = Worker(engine or FakeEngine(), tokenizer, settings, RowOptions(**options))
        records = (Record(number, fields) for number, fields in enumerate(rows, 1))
        results = [result for results, _ in answer_all(worker, records) for result in results]
        assert len(results) == len(rows) and not worker.has_work
        return {result.number: result for result in sorted(results)}
    return run


@pytest.fixture
def error(answer):
    """A function that answers one row, and gives its error."""
    def run(row, **options):
        result = answer(row, **options)[1]
        assert result.kind == ERROR and result.content["row"] == 1 and result.content["input"] == row
        return result.content["error"]
    return run


def prompt_of(answer, tokenizer, row, **options):
    """The ids that the engine gets for a row."""
    class Recorder(FakeEngine):
        def add(self, request):
            super().add(request)
            self.prompt, self.settings = request.prompt, request.settings

    engine = Recorder(seq_length=10_000)
    assert answer(row, engine=engine, **options)[1].kind == ANSWER
    return engine


def test_an_answer_has_what_was_asked_and_what_it_took(answer):
    result = answer({"prompt": "abc", "id": "x", "other": 1})[1]
    assert result == (1, ANSWER, {"id": "x", "prompt": "abc", "response": "cba", "prompt_tokens": 3,
                                  "completion_tokens": 4, "finish_reason": "stop"})
    result = answer({"prompt": "abc", "max_new_tokens": 2})[1]
    assert result.content["id"] == 1, "the number stands in for an id"
    assert (result.content["response"], result.content["completion_tokens"]) == ("cb", 2)
    assert result.content["finish_reason"] == "length"


def test_base_models_go_on_with_the_text_and_control_tokens_stay_text(answer, tokenizer):
    text = " <|im_end|>é "
    assert prompt_of(answer, tokenizer, {"prompt": text}).prompt == list(text.encode())
    parsed = prompt_of(answer, tokenizer, {"prompt": text}, parse_special=True).prompt
    assert parsed == [ord(" "), tokenizer.im_end_id, *"é ".encode()]
    assert answer({"prompt": "a  b"})[1].content["response"] == "b  a"
    assert answer({"prompt": "b "})[1].content["response"] == " b", "a continuation keeps its spaces"


@pytest.mark.parametrize("row, expected", [
    ({"prompt": "Hi <|im_end|>"}, ("Hi <|im_end|>", None, "be nice")),
    ({"prompt": "Hi", "system": "be brief"}, ("Hi", None, "be brief")),
    ({"query": "Hi", "history": [["a", "b"], ["c", "d"]]}, ("Hi", [("a", "b"), ("c", "d")], "be nice")),
    ({"query": "Hi", "history": '[["a", "b"]]'}, ("Hi", [("a", "b")], "be nice")),
    ({"messages": [{"role": "user", "content": "Hi"}]}, ("Hi", None, "be nice")),
    ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                   {"role": "assistant", "content": "b"}, {"role": "user", "content": "Hi"}]},
     ("Hi", [("a", "b")], "s")),
    ({"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]}, ("Hi", None, "be nice")),
    ({"messages": '[{"role": "user", "content": "Hi"}]', "prompt": "", "query": None}, ("Hi", None, "be nice")),
])
def test_chat_models_get_chatml(answer, tokenizer, row, expected):
    engine = prompt_of(answer, tokenizer, row, settings=CHAT, system="be nice")
    assert engine.prompt == make_context(tokenizer, *expected)[1]
    content = answer(row, settings=CHAT, engine=FakeEngine(seq_length=10_000))[1].content
    assert ("messages" in content) == ("messages" in row) and ("history" in content) == ("history" in row)
    assert not isinstance(content.get("history"), str) and not isinstance(content.get("messages"), str)


def test_chat_models_end_with_their_control_tokens_whatever_the_settings_say(answer, tokenizer):
    assert prompt_of(answer, tokenizer, {"prompt": "x"}, settings=CHAT).settings.stop_words_ids == \
        ((tokenizer.im_end_id,), (tokenizer.im_start_id,), (tokenizer.eod_id,))
    assert prompt_of(answer, tokenizer, {"prompt": "x"}).settings.stop_words_ids == ((tokenizer.eod_id,),)


def test_history_leaves_room_for_the_answer(answer, tokenizer):
    row = {"query": "Hi", "history": [["a" * 100, "b" * 100], ["c", "d"]]}
    engine = FakeEngine(seq_length=260)
    content = answer(row, settings=CHAT.override(max_new_tokens=30), engine=engine)[1].content
    kept = make_context(tokenizer, "Hi", [("c", "d")])[1]
    assert content["prompt_tokens"] == len(kept) and content["history"] == row["history"]


def test_a_row_may_have_settings_of_its_own(answer, tokenizer):
    row = {"prompt": "x", "max_new_tokens": 7, "temperature": 0.5, "do_sample": True, "seed": 3, "top_k": None,
           "stop_words": ["a", "b"]}
    settings = prompt_of(answer, tokenizer, row).settings
    assert (settings.max_new_tokens, settings.temperature, settings.do_sample, settings.seed) == (7, 0.5, True, 3)
    assert settings.stop_words == ("a", "b") and settings.top_k == 0
    text = {name: str(value) for name, value in row.items() if name not in ("top_k", "stop_words")}
    assert prompt_of(answer, tokenizer, {**text, "top_k": "", "stop_words": '["a", "b"]'}).settings == settings, \
        "as they stand in a CSV"
    assert prompt_of(answer, tokenizer, {"prompt": "x", "stop_words": "end"}).settings.stop_words == ("end",)


@pytest.mark.parametrize("name, value, setting, expected", [
    ("max_new_tokens", 2.0, "max_new_tokens", 2), ("max_tokens", 7, "max_new_tokens", 7),
    ("max_completion_tokens", "7", "max_new_tokens", 7), ("stop", "end", "stop_words", ("end",)),
    ("stop", ["a", "b"], "stop_words", ("a", "b")), ("stop", '["a"]', "stop_words", ("a",)),
    ("stop", "[end", "stop_words", ("[end",)), ("stop", None, "stop_words", ()), ("max_tokens", None, "top_k", 0),
    ("temperature", 0, "temperature", 0), ("do_sample", "True", "do_sample", True), ("top_k", "5.0", "top_k", 5),
    ("n", 1, "top_k", 0), ("logprobs", False, "top_k", 0), ("response_format", {"type": "text"}, "top_k", 0),
    ("tools", [], "top_k", 0), ("stream", True, "top_k", 0), ("frequency_penalty", 0.0, "top_k", 0),
    ("model", "gpt", "top_k", 0), ("logprobs", "False", "top_k", 0)])
def test_openais_columns_are_understood(answer, tokenizer, name, value, setting, expected):
    assert getattr(prompt_of(answer, tokenizer, {"prompt": "x", name: value}).settings, setting) == expected


@pytest.mark.parametrize("row, said", [
    ({"n": 2}, "n: not implemented, expected 1 or nothing, found 2"), ({"logprobs": 5}, "logprobs: not implemented"),
    ({"logprobs": True}, "logprobs: not implemented"), ({"n": "2"}, "n: not implemented"),
    ({"tools": [{"type": "function"}]}, "tools: not implemented"), ({"logit_bias": {"x": 1}}, "logit_bias: exp"),
    ({"presence_penalty": 3}, "presence_penalty: expected a number"), ({"best_of": 3}, "best_of: not implemented"),
    ({"response_format": {"type": "json_object"}}, "response_format: not implemented"),
    ({"max_tokens": 5, "max_new_tokens": 6}, "max_new_tokens and max_tokens: they mean the same, and differ"),
    ({"stop": "a", "stop_words": "b"}, "stop_words and stop: they mean the same, and differ"),
    ({"max_tokens": 0}, "max_tokens: expected a positive integer, found 0"),
    ({"max_tokens": True}, "max_tokens: expected a positive integer, found True"),
    ({"stop": [7]}, "stop: expected a list of strings, none empty, found"), ({"stop": {}}, "stop: expected a list"),
    ({"stop": 5}, "stop: expected a list of strings"), ({"top_k": -1}, "found -1: write 0 to switch it off"),
    ({"top_p": 0}, "found 0: write 1 to switch it off"), ({"temperature": float("inf")}, "temperature: expected"),
    ({"seed": 1e400}, "seed: expected"), ({"do_sample": 2}, "do_sample: expected True or False, found 2"),
    ({"chat_format": "llama"}, "chat_format: expected 'raw' or 'chatml', found 'llama'"),
    ({"eos_token_id": "<|im_end|>"}, "eos_token_id: expected an id"),
    ({"stop_words_ids": [5]}, "stop_words_ids: expected"), ({"max_window_size": 0}, "max_window_size: expected"),
    ({"num_beams": 3}, "num_beams: not implemented, expected 1 or"),
    ({"num_return_sequences": "3"}, "num_return_sequences: not implemented"), ({"typical_p": 0.5}, "typical_p: not"),
    ({"max_length": 100}, "max_length: not implemented, expected nothing"), ({"min_tokens": -1}, "min_tokens: exp"),
    ({"ignore_eos": "perhaps"}, "ignore_eos: expected"), ({"penalty_alpha": 0.6}, "penalty_alpha: not implemented"),
    ({"min_tokens": 5, "max_tokens": 3}, "min_new_tokens: expected at most max_new_tokens (3), found 5"),
    ({"stop_token_ids": ["x"]}, "stop_token_ids: expected an id or a list of ids"),
    ({"guided_json": {}}, "guided_json: not implemented"), ({"skip_special_tokens": False}, "skip_special_tokens: not"),
    ({"use_beam_search": True}, "use_beam_search: not implemented"), ({"n_predict": 3}, "write max_new_tokens"),
    ({"repeat_penalty": 1.2}, "repeat_penalty: not implemented, expected 1 or nothing, found 1.2; write repetition_"),
    ({"sampling_params": {"top_k": 1}}, "sampling_params: not implemented, expected {} or nothing, found {'top_k': 1}; "
                                        "write its values as columns"),
    ({"logit_bias": {"1_0": 1}}, "logit_bias: expected"), ({"logit_bias": [[1, 2], [1, 3]]}, "each id once")])
def test_what_a_row_asks_for_and_can_not_have_is_its_error(error, row, said):
    assert said in error({"prompt": "a", **row})


@pytest.mark.parametrize("row, words", [
    ({"eos_token_id": 5}, ((7,), (5,))), ({"eos_token_id": "[5, 6]"}, ((7,), (5,), (6,))),
    ({"eos_token_id": -1}, ((7,),)), ({"stop_token_ids": [5, 6]}, ((7,), (5,), (6,))),
    ({"stop_token_ids": "[5]", "eos_token_id": 6}, ((7,), (6,), (5,))), ({"stop_token_ids": []}, ((7,),)),
    ({"stop_words_ids": [[1, 2]]}, ((7,), (1, 2))), ({"stop_words_ids": "[[1, 2]]", "eos_token_id": 5.0},
                                                     ((7,), (1, 2), (5,)))])
def test_ids_that_end_a_rows_answer_are_in_addition_to_the_models(answer, tokenizer, row, words):
    found = prompt_of(answer, tokenizer, {"prompt": "x", **row}, settings=RAW.override(stop_words_ids=[[7]])).settings
    assert found.stop_words_ids == (*words, (tokenizer.eod_id,))


def test_a_row_may_have_a_form_and_a_window_of_its_own(answer, tokenizer):
    asked = prompt_of(answer, tokenizer, {"prompt": "Hi", "chat_format": "ChatML"})
    assert asked.prompt == make_context(tokenizer, "Hi")[1]
    assert prompt_of(answer, tokenizer, {"prompt": "Hi", "chat_format": "raw"}, settings=CHAT).prompt == list(b"Hi")
    row = {"query": "Hi", "history": [["a" * 100, "b" * 100], ["c", "d"]], "max_window_size": "150"}
    assert prompt_of(answer, tokenizer, row, settings=CHAT).prompt == make_context(tokenizer, "Hi", [("c", "d")])[1]


@pytest.mark.parametrize("name, value, setting, expected", [
    ("min_p", "0.1", "min_p", 0.1), ("min_tokens", 3.0, "min_new_tokens", 3), ("ignore_eos", "yes", "ignore_eos", True),
    ("presence_penalty", 0.5, "presence_penalty", 0.5), ("frequency_penalty", "-1", "frequency_penalty", -1.0),
    ("logit_bias", '{"5": 1}', "logit_bias", ((5, 1.0),)), ("logit_bias", {}, "logit_bias", ())])
def test_what_a_request_may_ask_for_a_row_may(answer, tokenizer, name, value, setting, expected):
    assert getattr(prompt_of(answer, tokenizer, {"prompt": "x", name: value}).settings, setting) == expected


@pytest.mark.parametrize("value, meant", [("no", False), ("off", False), ("Yes", True), ("1", True), (0, False)])
def test_a_boolean_of_a_row_is_what_it_is_in_a_yaml(answer, tokenizer, value, meant):
    assert prompt_of(answer, tokenizer, {"prompt": "x", "do_sample": value}).settings.do_sample is meant


@pytest.mark.parametrize("row, said", [
    ({"prompt": "a\ud83d"}, "prompt: character 2 is half a surrogate pair (\\ud83d) and no text"),
    ({"prompt": "a", "system": "\ude00"}, "system: character 1"), ({"query": "\ude00\ud83d"}, "query: character 1"),
    ({"query": "a", "history": [["b", "c"], ["d", "e\ud800"]]}, "history: turn 2: character 2"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a\udfff"}]}]},
     "content of message 1: character 2")])
def test_half_a_character_is_the_rows_error(error, row, said):
    assert said in error(row, settings=CHAT)


def test_two_halves_that_belong_together_are_a_character(answer, tokenizer):
    asked = prompt_of(answer, tokenizer, {"prompt": "\ud83d\ude00"})
    assert asked.prompt == list("😀".encode())


@pytest.mark.parametrize("text", [" ", "\u2028", "\u3000\xa0", "\x1c\x0b", "\r\n\t", "\x85"])
def test_white_space_of_any_kind_is_no_prompt(error, text):
    assert error({"prompt": text}) == "prompt is empty"


def test_the_same_setting_twice_with_the_same_value_is_no_error(answer, tokenizer):
    row = {"prompt": "x", "max_tokens": 5, "max_completion_tokens": 5.0, "stop": "a", "stop_words": ["a"]}
    settings = prompt_of(answer, tokenizer, row).settings
    assert settings.max_new_tokens == 5 and settings.stop_words == ("a",)


def test_content_may_come_in_parts_of_text(answer, tokenizer):
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    for messages in ([{"role": "user", "content": parts}],
                     [{"role": "system", "content": [{"type": "text", "text": "be nice"}]},
                      {"role": "user", "content": parts}]):
        engine = prompt_of(answer, tokenizer, {"messages": messages}, settings=CHAT, system="be nice")
        assert engine.prompt == make_context(tokenizer, "Hello", None, "be nice")[1]
        content = answer({"messages": messages}, settings=CHAT, engine=FakeEngine(seq_length=10_000))[1].content
        assert content["messages"] == messages, "as they were given"


@pytest.mark.parametrize("content, said", [
    ([{"type": "image_url", "image_url": {"url": "x"}}], "part 1 is one of type 'image_url'"),
    ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "part 2 is one of type 'input_audio'"),
    (["a"], "part 1 is 'a'"), ([{"type": "text"}], "expected text in part 1, found None"),
    ([{"type": "text", "text": 7}], "expected text in part 1, found 7"), ([], "messages is empty"),
    (None, "content: expected text, found None"), ({"type": "text", "text": "a"}, "content: expected text, found")])
def test_content_that_is_no_text_is_the_rows_error(error, content, said):
    assert said in error({"messages": [{"role": "user", "content": content}]}, settings=CHAT)


def test_an_infinite_id_of_a_table_gives_way_to_the_number(answer):
    assert answer({"prompt": "a", "id": float("inf")})[1].content["id"] == 1
    assert str(answer({"prompt": "a", "id": Number("1e400")})[1].content["id"]) == "1e400"


EXTREMES = [{"temperature": 1e-40}, {"temperature": 5e-324}, {"temperature": 1e300}, {"top_p": 1e-30},
            {"top_p": 5e-324}, {"top_k": 10 ** 30}, {"repetition_penalty": 1e-40}, {"repetition_penalty": 1e300},
            {"repetition_penalty": 5e-324, "temperature": 1e-300, "top_k": 3, "top_p": 1e-9}, {"temperature": 0}]


def test_no_setting_of_one_row_ends_the_run(build_tiny, answer):
    model = build_tiny(use_past=True, pad_token_id=256, batch_size=4, seq_length=256)
    rows = [{"prompt": "Hello", "do_sample": True, "seed": 1, "max_new_tokens": 4, **row} for row in EXTREMES]
    rows += [{"prompt": "Hello", "max_new_tokens": 10 ** 400}, {"prompt": "Hello", "temperature": 10 ** 400}]
    results = answer(*rows, engine=Engine(model, max_batch=4))
    assert [result.kind for result in results.values()] == [ANSWER] * (len(rows) - 1) + [ERROR]
    assert "temperature: expected a number above 0, found 1000" in results[len(rows)].content["error"]
    greedy = answer({"prompt": "Hello", "max_new_tokens": 4}, engine=Engine(model))[1].content["response"]
    for number, row in enumerate(EXTREMES, 1):
        if row in ({"temperature": 1e-40}, {"temperature": 5e-324}, {"top_p": 1e-30}, {"temperature": 0}):
            assert results[number].content["response"] == greedy


def test_a_row_whose_token_can_not_be_chosen_leaves_the_others_alone(build_tiny, answer, monkeypatch):
    model = build_tiny(use_past=True, pad_token_id=256, batch_size=4, seq_length=256)

    def choose(logits, settings, *_):
        return [0][1] if settings.seed == 13 else int(logits.argmax())

    monkeypatch.setattr("qwen_mindspore.generate.choice.next_token", choose)
    rows = [{"prompt": "Hello", "seed": seed, "max_new_tokens": 3} for seed in (1, 13, 2)]
    results = answer(*rows, engine=Engine(model, max_batch=4))
    assert [result.kind for result in results.values()] == [ANSWER, ERROR, ANSWER]
    assert results[2].content["error"].startswith("request 2: no token to choose at token 1 of the answer by ")


def test_stop_strings_end_an_answer_and_are_cut_off(answer):
    row = {"prompt": "abcdefgh", "stop_words": ["ed"]}
    engine = FakeEngine()
    content = answer(row, engine=engine)[1].content
    assert (content["response"], content["finish_reason"], content["completion_tokens"]) == ("hgf", "stop", 5)


@pytest.mark.parametrize("row, said", [
    ({}, "no prompt or messages or query, found nothing"),
    ({"text": "a", "label": 1}, "no prompt or messages or query, found text, label"),
    ({"prompt": ""}, "prompt is empty"), ({"prompt": " \n"}, "prompt is empty"), ({"prompt": None}, "no prompt"),
    ({"prompt": None, "query": None, "id": 1}, "no prompt or query: found null"),
    ({"prompt": 5}, "prompt: expected text, found 5"),
    ({"prompt": "a", "messages": [{}]}, "both prompt and messages: --prompt_column"),
    ({"prompt": "a", "top_p": 3}, "top_p: expected a number above 0 and up to 1"),
    ({"prompt": "a", "temperature": "hot"}, "temperature: expected a number above 0, found 'hot'"),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens: expected"),
    ({"prompt": "a" * 256}, "the prompt has 256 tokens and the model holds 256"),
    ({"prompt": "a", "system": "b"}, "system: only for a chat model"),
    ({"query": "a", "history": [["b", "c"]]}, "history: only for a chat model"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages: only for a chat model"),
])
def test_a_row_that_can_not_be_answered_says_why(error, row, said):
    assert said in error(row)


@pytest.mark.parametrize("row, said", [
    ({"messages": []}, "found none"), ({"messages": "no JSON"}, "expected JSON, found 'no JSON'"),
    ({"messages": {"role": "user"}}, "messages: expected a list of {role, content}"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "found assistant"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "found user, user"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "user, assistant"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content: expected text"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages is empty"),
    ({"query": "a", "history": [["b"]]}, "history: expected a list of [question, answer]"),
    ({"query": "a", "history": [["b", 1]]}, "history: expected"), ({"query": "a", "history": "{"}, "expected JSON"),
    ({"query": "a", "system": 7}, "system: expected text, found 7"),
])
def test_a_conversation_that_is_none_says_why(error, row, said):
    assert said in error(row, settings=CHAT)


def test_columns_may_have_other_names(answer, error):
    row = {"question": "ab", "prompt": "not this", "key": "k"}
    content = answer(row, prompt_column="question", id_column="key")[1].content
    assert (content["id"], content["prompt"], content["response"]) == ("k", "ab", "ba")
    assert error({"prompt": "a"}, prompt_column="question") == "no question, found prompt"
    messages = [{"role": "user", "content": "Hi"}]
    assert answer({"dialogue": messages}, prompt_column="dialogue", settings=CHAT)[1].content["messages"] == messages


def test_unreadable_rows_pass_through_as_errors(tokenizer):
    worker = Worker(FakeEngine(), tokenizer, RAW, RowOptions())
    assert worker.add(Record(7, None, "invalid JSON", "{")) == [
        (7, ERROR, {"row": 7, "id": 7, "error": "invalid JSON", "input": "{"})]
    assert not worker.has_work


def test_a_row_whose_numbers_go_wrong_is_a_bad_row_a_failing_machine_ends_the_run(answer):
    class Failing(FakeEngine):
        def add(self, request):
            super().add(request)
            if bytes(request.prompt) == b"bad":
                self.answers[request.id] = [-1]

    engine = Failing()
    engine.error = lambda _: FloatingPointError("the logits are not finite")
    results = answer({"prompt": "ab"}, {"prompt": "bad"}, {"prompt": "cd"}, engine=engine)
    assert [result.kind for result in results.values()] == [ANSWER, ERROR, ANSWER]
    assert results[2].content["error"] == "the logits are not finite"
    engine.error = lambda _: MemoryError("no memory left")
    with pytest.raises(MemoryError):
        answer({"prompt": "ab"}, {"prompt": "bad"}, engine=engine)


def test_only_as_many_rows_are_taken_as_keep_the_engine_busy(tokenizer):
    taken = []

    def records():
        for number in range(1, 100):
            taken.append(number)
            yield Record(number, {"prompt": "x" * (number % 9 + 1)} if number % 10 else {"prompt": ""})

    engine = FakeEngine(max_batch=4)
    worker = Worker(engine, tokenizer, RAW, RowOptions())
    done = 0
    for results, _ in answer_all(worker, records()):
        done += len(results)
        assert len(taken) - done <= 8
    assert done == 99 and engine.most == 8


@pytest.mark.parametrize("settings", [RAW, RAW.override(do_sample=True, seed=5)])
def test_answers_do_not_depend_on_what_else_is_answered_when(answer, tokenizer, settings):
    rows = [{"prompt": f"row {i}" * (i % 5 + 1)} for i in range(40)]
    expected = answer(*rows, settings=settings)
    for pace in range(3):
        assert answer(*rows, settings=settings, engine=FakeEngine(pace=pace, max_batch=pace * 5 + 1)) == expected
    if settings.do_sample:
        answers = [result.content["response"] for result in expected.values()]
        assert len(set(answers)) == 40, "each row draws for itself"
        other = answer(*rows, settings=settings.override(seed=6))
        assert other != expected
        worker = Worker(FakeEngine(), tokenizer, settings, RowOptions())
        alone = [result for results, _ in answer_all(worker, [Record(17, rows[16])]) for result in results]
        assert alone == [expected[17]], "by its number"


def test_the_engine_itself_gives_what_generate_gives(build_tiny, tokenizer, answer):
    model = build_tiny(use_past=True, pad_token_id=256, batch_size=4, seq_length=256)
    texts = [bytes(random.Random(i).choices(range(32, 127), k=3 + 7 * i)).decode() for i in range(8)]
    rows = [{"prompt": text, "max_new_tokens": 3 + 5 * i % 17} for i, text in enumerate(texts)]
    results = answer(*rows, engine=Engine(model, max_batch=4))
    for row, result in zip(rows, results.values()):
        ids = list(row["prompt"].encode())
        out = model.generate(ids, max_new_tokens=row["max_new_tokens"], do_sample=False, eos_token_id=[256])[0]
        assert result.content["response"] == tokenizer.decode(out[len(ids):], skip_special_tokens=True)
        assert result.content["completion_tokens"] == len(out) - len(ids)
