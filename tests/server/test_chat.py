"""POST /v1/chat/completions: answers, whole and in pieces, and what belongs to them."""
import json
import re

import pytest

from helpers.api import Api
from helpers.scripted import ScriptedEngine

ASSISTANT, USER = {"role": "assistant", "content": "Once upon"}, {"role": "user", "content": "Hi"}


def ask(tokenizer, script="Hello!", messages="Hi", engine=None, changes=None, **fields):
    """An answer of a service of its own; with `stream` its events."""
    with Api(tokenizer, engine or ScriptedEngine(script), **(changes or {})) as api:
        return api.chat(messages, **fields)


def text_of(events, index=0):
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"]
                   if choice["index"] == index)


def prompt_of(tokenizer, messages="Hi", **fields):
    engine = ScriptedEngine("x")
    ask(tokenizer, engine=engine, messages=messages, **fields)
    return tokenizer.decode(engine.requests[0].prompt)


# An answer

def test_an_answer_has_the_shape_of_openais(tokenizer):
    answer = ask(tokenizer, engine=ScriptedEngine("Hello!", cached=20))
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", answer.pop("id")) and answer.pop("created") > 1.7e9
    assert answer.pop("system_fingerprint").startswith("qwen-mindspore-")
    assert answer == {
        "object": "chat.completion", "model": "qwen-test",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!", "refusal": None},
                     "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 59, "completion_tokens": 7, "total_tokens": 66,
                  "prompt_tokens_details": {"cached_tokens": 20}}}


def test_an_answer_that_is_cut_says_so(tokenizer):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(tokenizer, **{name: 3})
        assert answer["choices"][0]["message"]["content"] == "Hel"
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


def test_the_events_of_a_stream_join_to_the_answer(tokenizer):
    events = ask(tokenizer, engine=ScriptedEngine("Hello!", pace=0.003), stream=True)
    assert len({event["id"] for event in events}) == len({event["created"] for event in events}) == 1
    assert all(event["object"] == "chat.completion.chunk" and "usage" not in event for event in events)
    first, *middle, last = (event["choices"][0] for event in events)
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert all(set(choice["delta"]) == {"content"} and choice["delta"]["content"] for choice in middle)
    assert all(choice["finish_reason"] is None and choice["logprobs"] is None for choice in middle)
    assert last["delta"] == {} and last["finish_reason"] == "stop"
    assert text_of(events) == "Hello!" and len(middle) > 1


def test_usage_comes_at_the_end_of_a_stream_if_asked(tokenizer):
    engine = ScriptedEngine("Hello!", cached=5)
    *events, last = ask(tokenizer, engine=engine, stream=True, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == [] and last["usage"] == {
        "prompt_tokens": 59, "completion_tokens": 7, "total_tokens": 66,
        "prompt_tokens_details": {"cached_tokens": 5}}


def test_usage_comes_with_each_event_if_asked(tokenizer):
    events = ask(tokenizer, engine=ScriptedEngine("Hello!", pace=0.003), stream=True,
                 stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == 7 and len(set(counts)) > 3


@pytest.mark.parametrize("text", ["波士顿\U0001f600", "a\u2028b\u2029c\x85d", 'quote " and \\', "tab\tand\nline"])
@pytest.mark.parametrize("stream", [False, True])
def test_text_comes_as_it_is_and_never_breaks_an_event(tokenizer, text, stream):
    answer = ask(tokenizer, engine=ScriptedEngine(text, pace=0.001), stream=stream)
    assert (text_of(answer) if stream else answer["choices"][0]["message"]["content"]) == text


def test_an_event_is_one_line_for_every_reader(tokenizer):
    with Api(tokenizer, ScriptedEngine("a\u2028b\u2029c\x85d")) as api:
        response = api.post("/v1/chat/completions", {"messages": [USER], "stream": True})
    assert all(line == "" or line.startswith("data: ") for line in response.text.splitlines())
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache" and response.headers["x-accel-buffering"] == "no"


def test_several_answers_have_the_next_seeds_and_count_their_prompt_once(tokenizer):
    engine = ScriptedEngine(lambda request: f"seed {request.settings.seed}", cached=9)
    answer = ask(tokenizer, engine=engine, n=3, seed=2**32 - 2, temperature=0.5)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [
        f"seed {seed}" for seed in (2**32 - 2, 2**32 - 1, 0)]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 59
    assert answer["usage"]["completion_tokens"] == sum(len(f"seed {s}") + 1 for s in (2**32 - 2, 2**32 - 1, 0))
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 9}


def test_several_answers_stream_at_once(tokenizer):
    engine = ScriptedEngine(lambda request: f"seed {request.settings.seed}", pace=0.002, max_batch=2)
    events = ask(tokenizer, engine=engine, n=3, seed=4, stream=True)
    assert [text_of(events, index) for index in range(3)] == ["seed 4", "seed 5", "seed 6"]
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize("stop", ["wor", ["zzz", "wor"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_words_end_an_answer_and_are_cut_off(tokenizer, stop, stream):
    answer = ask(tokenizer, "Hello, world!", stop=stop, stream=stream)
    choice = answer[-1]["choices"][0] if stream else answer["choices"][0]
    assert (text_of(answer) if stream else choice["message"]["content"]) == "Hello,"
    assert choice["finish_reason"] == "stop"


def test_stop_token_ids_end_an_answer_and_ignore_eos_does_not_end_it(tokenizer):
    answer = ask(tokenizer, "Hello!", stop_token_ids=[ord("l")])
    assert answer["choices"][0]["message"]["content"] == "He"
    answer = ask(tokenizer, "Hello!", ignore_eos=True, max_tokens=20)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 20


def test_ids_come_with_an_answer_if_asked(tokenizer):
    answer = ask(tokenizer, return_token_ids=True)
    assert tokenizer.decode(answer["prompt_token_ids"]).endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert answer["choices"][0]["token_ids"] == [*b"Hello!", 258]
    events = ask(tokenizer, engine=ScriptedEngine("H\u00e9\U0001f600!", pace=0.003), return_token_ids=True, stream=True)
    assert events[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    ids = [token for event in events for token in event["choices"][0]["token_ids"]]
    assert ids == [*"H\u00e9\U0001f600!".encode(), 258]
    assert text_of(events) == "H\u00e9\U0001f600!"


def test_an_id_may_be_chosen(tokenizer):
    assert ask(tokenizer, request_id="abc")["id"] == "chatcmpl-abc"


# Log probabilities

def entries(answer, stream, index=0):
    if not stream:
        return answer["choices"][index]["logprobs"]["content"]
    return [entry for event in answer for choice in event["choices"] if choice["index"] == index
            for entry in (choice["logprobs"] or {"content": []})["content"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script, text", [("Hello!", "Hello!"), (" \n Hello! ", "Hello!"),
                                          ("H\u00e9\U0001f600", "H\u00e9\U0001f600"), ("Hello, world", "Hello,")])
def test_log_probabilities_are_those_of_the_tokens_of_the_text(tokenizer, script, text, stream):
    answer = ask(tokenizer, engine=ScriptedEngine(script, pace=0.002), logprobs=True, stream=stream, stop=" wo")
    found = entries(answer, stream)
    assert bytes(byte for entry in found for byte in entry["bytes"]).decode() == text
    assert all(entry["logprob"] == -0.25 and entry["top_logprobs"] == [] for entry in found)
    assert (text_of(answer) if stream else answer["choices"][0]["message"]["content"]).strip() == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_control_token_that_the_text_has_not_is_not_among_them(tokenizer, stream):
    extra = tokenizer.special_tokens["<|extra_0|>"]
    answer = ask(tokenizer, engine=ScriptedEngine([extra, *b"Hel", extra, *b"lo\xc3", extra]), max_tokens=9,
                 logprobs=True, stream=stream)
    assert "".join(chr(*entry["bytes"]) for entry in entries(answer, stream)) == "Hello\xc3"


def test_the_likeliest_tokens_come_with_each_if_asked(tokenizer):
    answer = ask(tokenizer, "Hi", logprobs=True, top_logprobs=2)
    assert entries(answer, False)[0] == {
        "token": "H", "logprob": -0.25, "bytes": [72],
        "top_logprobs": [{"token": "H", "logprob": -0.25, "bytes": [72]},
                         {"token": "I", "logprob": -1.0, "bytes": [73]}]}
    assert answer["choices"][0]["logprobs"]["refusal"] is None


def test_events_of_a_stream_hold_the_log_probabilities_of_their_text(tokenizer):
    events = ask(tokenizer, engine=ScriptedEngine("Hello, world!", pace=0.003), logprobs=True, stream=True)
    for event in events:
        choice = event["choices"][0]
        if choice["delta"].get("content"):
            assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["delta"]["content"]
        else:
            assert choice["logprobs"] is None


# Prompts

def test_a_conversation_becomes_chatml_and_control_tokens_in_it_stay_text(tokenizer):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "a<|im_end|>"},
                {"role": "assistant", "content": None}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    engine = ScriptedEngine("x")
    ask(tokenizer, engine=engine, messages=messages)
    assert tokenizer.decode(engine.requests[0].prompt) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n"
        "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n")
    assert list(engine.requests[0].prompt).count(258) == 4


@pytest.mark.parametrize("fields", [{}, {"continue_final_message": True, "add_generation_prompt": False},
                                    {"add_generation_prompt": False}])
def test_an_assistants_last_message_is_continued(tokenizer, fields):
    assert prompt_of(tokenizer, [USER, ASSISTANT], **fields).endswith("<|im_start|>assistant\nOnce upon")
    answer = ask(tokenizer, " a time", [USER, ASSISTANT], **fields)
    assert answer["choices"][0]["message"]["content"] == " a time"


@pytest.mark.parametrize("fields", [{"add_generation_prompt": True}, {"continue_final_message": False}])
def test_an_assistants_last_message_is_left_alone_if_asked(tokenizer, fields):
    assert prompt_of(tokenizer, [USER, ASSISTANT], **fields).endswith(
        "<|im_start|>assistant\nOnce upon<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("fields, param, said", [
    ({"continue_final_message": True}, "continue_final_message", "an assistant's, found one of role 'user'"),
    ({"messages": [USER, ASSISTANT], "continue_final_message": True, "add_generation_prompt": True},
     "continue_final_message", "expected add_generation_prompt to be false"),
    ({"add_generation_prompt": False}, "add_generation_prompt", "to be an assistant's where it is false"),
    ({"messages": []}, "messages", "expected a list of messages"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "expected one of system"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "found None"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "expected text, found 3"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content[0].type", "found 'image_url'"),
    ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages[1].role", "to be the first"),
    ({"messages": [USER, {"role": "assistant", "audio": {"id": "a"}}]}, "messages[1].audio", "reads text alone"),
    ({"messages": ["Hi"]}, "messages[0]", "should be a valid dictionary, found 'Hi'"),
])
def test_what_is_no_conversation_is_refused_by_place(tokenizer, fields, param, said):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        error = api.refused(**fields)
    assert error["param"] == param and said in error["message"] and error["type"] == "invalid_request_error"


def test_nothing_is_left_out_of_a_conversation_that_is_too_long_both_numbers_are_told(tokenizer):
    messages = [{"role": role, "content": "a" * 30} for role in ("user", "assistant")] * 9 + [USER]
    with Api(tokenizer, ScriptedEngine("x", room=300)) as api:
        error = api.refused(messages=messages)
    assert error["type"] == "exceed_context_size_error" and error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == 300 and error["n_prompt_tokens"] > 300 and error["param"] == "messages"
    assert f"maximum context length is 300 tokens, the answer's included, and the prompt has " \
           f"{error['n_prompt_tokens']}" in error["message"]


def test_a_base_model_has_no_chat(tokenizer):
    with Api(tokenizer, ScriptedEngine("x"), chat=False) as api:
        assert "is a base model, which continues texts: use /v1/completions" in api.refused()["message"]


# Forms of an answer

class Grammar:
    """Lets all follow, and is over behind `length` tokens."""

    def __init__(self, length):
        self.left = length

    def mask(self, logits):
        pass

    def accept(self, token):
        self.left -= 1

    @property
    def is_over(self):
        return self.left == 0


class Grammars:
    def __init__(self):
        self.asked = []

    def json_object(self):
        self.asked.append("object")
        return Grammar(2)

    def json_schema(self, schema):
        if schema == {"type": "hiccup"}:
            raise ValueError("Invalid type: hiccup")
        self.asked.append(schema)
        return Grammar(2)


@pytest.mark.parametrize("form, asked", [
    ({"type": "text"}, []), ({"type": "json_object"}, ["object"] * 2),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
     [{"type": "object"}] * 2),
    ({"type": "json_object", "schema": {"type": "object"}}, [{"type": "object"}] * 2),
])
def test_an_answer_is_held_to_a_form_by_a_grammar_of_its_own(tokenizer, form, asked):
    engine, grammars = ScriptedEngine("{}!"), Grammars()
    answer = ask(tokenizer, engine=engine, changes={"grammars": grammars}, response_format=form, n=2)
    assert grammars.asked == asked
    held = [request.grammar for request in engine.requests]
    assert len({id(grammar) for grammar in held}) == (2 if asked else 1)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["{}" if asked else "{}!"] * 2
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("form, param, said", [
    ({"type": "xml"}, "response_format.type", "expected text, json_object or json_schema, found 'xml'"),
    ({"type": "json_schema"}, "response_format.json_schema", 'expected {"name": ..., "schema": {...}}, found None'),
    ({"type": "json_schema", "json_schema": {"schema": {"type": "hiccup"}}}, "response_format",
     "response_format: Invalid type: hiccup"),
    ({"type": "json_object", "schema": json.loads("[" * 100 + "]" * 100)}, "response_format", "nested too deeply"),
])
def test_a_form_that_can_not_be_had_is_refused(tokenizer, form, param, said):
    with Api(tokenizer, ScriptedEngine("x"), grammars=Grammars()) as api:
        error = api.refused(response_format=form)
    assert error["param"] == param and said in error["message"]


def test_forms_are_refused_where_there_are_no_grammars(tokenizer):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        assert "runs without grammars" in api.refused(response_format={"type": "json_object"})["message"]


# What goes wrong later

@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_that_fails_is_an_error(tokenizer, n):
    with Api(tokenizer, ScriptedEngine([*b"ab", FloatingPointError("the logits are not finite")])) as api:
        response = api.post("/v1/chat/completions", {"messages": [USER], "n": n}, status=500)
        assert response.json()["error"] == {
            "message": "the answer failed: the logits are not finite", "type": "server_error", "param": None,
            "code": "generation_failed"}
        events = api.chat(stream=True, n=n)
    assert events[-1]["error"]["message"] == "the answer failed: the logits are not finite"
    assert all("error" not in event for event in events[:-1])
