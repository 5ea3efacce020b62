"""The fields of a request: what they become, and that none is ignored in silence."""
import json

import pytest

from helpers.api import Api
from helpers.scripted import ScriptedEngine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.protocol import ChatRequest, CompletionRequest

DEFAULT = GenerationSettings(chat_format="chatml", max_new_tokens=100, temperature=0.7, top_p=0.8,
                             repetition_penalty=1.1, stop_words=("END",), stop_words_ids=((256,),))


def settings_of(tokenizer, settings=DEFAULT, **fields):
    """The settings of the request that the engine gets."""
    engine = ScriptedEngine("x")
    with Api(tokenizer, engine, settings=settings) as api:
        api.chat(**fields)
    return engine.requests[0].settings


@pytest.mark.parametrize("fields, expected", [
    ({"max_tokens": 7}, {"max_new_tokens": 7}), ({"max_completion_tokens": 7}, {"max_new_tokens": 7}),
    ({"max_tokens": 7, "max_completion_tokens": 7}, {"max_new_tokens": 7}),
    ({"max_tokens": None}, {"max_new_tokens": 100}),
    ({"max_tokens": 9, "min_tokens": 5}, {"min_new_tokens": 5}), ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"min_p": 0.1}, {"min_p": 0.1}), ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"presence_penalty": -2}, {"presence_penalty": -2.0}), ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
    ({"top_k": 5}, {"top_k": 5}), ({"top_k": 0}, {"top_k": 0}), ({"top_k": -1}, {"top_k": 0}),
    ({"logit_bias": {"97": -100, "98": 2.5}}, {"logit_bias": ((97, -100.0), (98, 2.5))}),
    ({"seed": 7}, {"seed": 7}), ({"seed": -1}, {"seed": 2**32 - 1}), ({"seed": 2**63 - 1}, {"seed": 2**32 - 1}),
    ({"seed": -9007199254740991}, {"seed": 1}), ({}, {"seed": None}),
    ({"logprobs": True}, {"logprobs": 0}), ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    ({"logprobs": False}, {"logprobs": None}),
    ({"stop": "a"}, {"stop_words": ("END", "a")}), ({"stop": ["a", "b"]}, {"stop_words": ("END", "a", "b")}),
    ({"stop": []}, {"stop_words": ("END",)}),
])
def test_a_field_becomes_its_setting(tokenizer, fields, expected):
    found = settings_of(tokenizer, **fields)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("fields, draws, temperature", [
    ({}, False, 0.7), ({"temperature": 0}, False, 0), ({"temperature": 0.0, "top_p": 0.5}, False, 0),
    ({"temperature": 1.5}, True, 1.5), ({"top_p": 0.5}, True, 0.7), ({"top_k": 3}, True, 0.7),
    ({"min_p": 0.1}, True, 0.7), ({"temperature": 1.5, "do_sample": False}, False, 1.5),
    ({"do_sample": True}, True, 0.7), ({"seed": 3}, False, 0.7),
])
def test_who_gives_a_temperature_wants_tokens_drawn(tokenizer, fields, draws, temperature):
    found = settings_of(tokenizer, **fields)
    assert (found.draws, found.temperature) == (draws, temperature)


def test_a_temperature_of_0_is_greedy_where_the_model_draws(tokenizer):
    assert not settings_of(tokenizer, DEFAULT.override(do_sample=True), temperature=0).draws
    assert settings_of(tokenizer, DEFAULT.override(do_sample=True)).draws


def test_stop_ids_are_added_to_the_models(tokenizer):
    assert {(256,), (97,), (98,)} <= set(settings_of(tokenizer, stop_token_ids=[97, 98]).stop_words_ids)


@pytest.mark.parametrize("fields, said", [
    ({"max_tokens": 0}, "max_tokens: expected a positive integer, found 0"),
    ({"max_tokens": -3}, "max_tokens: expected"), ({"max_completion_tokens": 0}, "max_completion_tokens: expected"),
    ({"max_tokens": "7"}, "max_tokens: input should be a valid integer, found '7'"),
    ({"max_tokens": 7.0}, "max_tokens: input should be a valid integer, found 7.0"),
    ({"max_tokens": True}, "max_tokens: input should be a valid integer, found True"),
    ({"max_completion_tokens": 3, "max_tokens": 4}, "max_completion_tokens: expected the same as max_tokens (4)"),
    ({"min_tokens": 200}, "min_tokens: expected at most max_tokens (100), found 200"),
    ({"min_tokens": -1}, "min_tokens: expected an integer from 0"),
    ({"n": 0}, "n: expected an integer from 1 to 128, found 0"), ({"n": 129}, "n: expected an integer from 1 to 128"),
    ({"temperature": -1}, "temperature: expected a number above 0"), ({"temperature": "hot"}, "temperature: input"),
    ({"top_p": 0}, "top_p: expected a number above 0"), ({"top_p": 1.5}, "top_p: expected"),
    ({"top_k": -2}, "top_k: expected an integer from 0"), ({"min_p": 2}, "min_p: expected a number from 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0"),
    ({"presence_penalty": 2.1}, "presence_penalty: expected a number from -2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty: expected a number from -2 to 2"),
    ({"logit_bias": {"foo": 0}}, "logit_bias: expected ids from 0 to 511, found 'foo'"),
    ({"logit_bias": {"512": 0}}, "logit_bias: expected ids from 0 to 511, found '512'"),
    ({"logit_bias": {"-1": 0}}, "logit_bias: expected ids from 0 to 511, found '-1'"),
    ({"logit_bias": {"1": 0, "01": 1}}, "logit_bias: id 1 is there twice, as '01' too"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1: input should be a valid number, found 'x'"),
    ({"seed": 2**63}, "seed: input should be less than or equal to 9223372036854775807"),
    ({"seed": 1.5}, "seed: input should be a valid integer"),
    ({"stop": ""}, "stop: expected stop words of 1 to 256 characters, found ''"),
    ({"stop": ["a"] * 17}, "stop: expected at most 16 stop words, found 17"),
    ({"stop": ["a" * 257]}, "stop: expected stop words of 1 to 256 characters"),
    ({"stop": 3}, "stop: input should be a valid"), ({"stop": [3]}, "stop[0]: input should be a valid string, found 3"),
    ({"stop_token_ids": [512]}, "stop_token_ids: expected ids from 0 to 511, found 512"),
    ({"stop_token_ids": [1] * 17}, "stop_token_ids: expected at most 16, found 17"),
    ({"top_logprobs": 2}, "top_logprobs: expected logprobs to be true with it"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: expected an integer from 0 to 20, found 21"),
    ({"logprobs": 1}, "logprobs: input should be a valid boolean, found 1"),
    ({"stream_options": {"include": True}}, "stream_options.include: unrecognized argument"),
    ({"stream_options": 3}, "stream_options: input should be"),
    ({"stream_options": {}}, "stream_options: expected stream to be true with it"),
    ({"messages": None}, "messages: input should be a valid list, found None"),
])
def test_a_value_that_a_field_can_not_have_is_refused_by_name(tokenizer, fields, said):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
        error = api.post("/v1/chat/completions", body, status=400).json()["error"]
    assert error["message"].startswith(said) and said.startswith(error["param"]) and "\n" not in error["message"]


def test_what_is_not_known_is_refused_with_the_name_that_may_be_meant(tokenizer):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        assert api.refused(max_token=3) == {
            "message": "Unrecognized request argument: max_token (did you mean max_tokens?)",
            "type": "invalid_request_error", "param": "max_token", "code": None}
        assert api.refused(foo="bar")["message"] == "Unrecognized request argument: foo"
        assert "\n" not in api.refused(**{"a\nb": 1})["message"]


def every_neutral(model):
    return [(model, name, value) for name, accepted in model.neutral.items()
            for value in [None, *(["whatever"] if accepted is ... else accepted)]]


@pytest.mark.parametrize("model, name, value", [*every_neutral(ChatRequest), *every_neutral(CompletionRequest)])
def test_a_field_that_changes_nothing_is_taken(model, name, value):
    subject = {"messages": []} if model is ChatRequest else {"prompt": "a"}
    assert model(**subject, **{name: value}) == model(**subject)


@pytest.mark.parametrize("name, value, said", [
    ("audio", {"voice": "x"}, "audio: not supported, expected null, found {'voice': 'x'}: this model reads"),
    ("modalities", ["text", "audio"], "modalities: not supported, expected ['text'] or null"),
    ("store", True, "store: not supported, expected False or null, found True"),
    ("store", 0, "store: not supported"),
    ("service_tier", "flex", "service_tier: not supported"), ("reasoning_effort", "high", "reasoning_effort: not"),
    ("web_search_options", {}, "web_search_options: not supported"), ("verbosity", "low", "verbosity: not supported"),
    ("skip_special_tokens", False, "skip_special_tokens: not supported"), ("bad_words", ["a"], "bad_words: not"),
    ("allowed_token_ids", [1], "allowed_token_ids: not supported"), ("cache_salt", "a", "cache_salt: not supported"),
    ("best_of", 2, "best_of: not supported, expected 1 or null, found 2: ask for n answers"),
    ("truncate_prompt_tokens", 5, "truncate_prompt_tokens: not supported"),
    ("include_stop_str_in_output", True, "include_stop_str_in_output: not supported"),
    ("max_length", 100, "max_length: not supported, expected null, found 100: it has no effect in Qwen's own server"),
    ("use_beam_search", True, "use_beam_search: not supported"), ("echo", True, "echo: not supported"),
])
def test_a_field_that_can_not_be_had_is_refused_by_name(tokenizer, name, value, said):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        error = api.refused(**{name: value})
    assert error["message"].startswith(said) and error["param"] == name


def test_any_name_of_a_model_is_answered_by_the_one_there_is(tokenizer):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        assert api.chat(model="gpt-3.5-turbo")["model"] == "qwen-test"


@pytest.mark.parametrize("content, headers, said", [
    (b"{", {"Content-Type": "application/json"}, "the body is not valid JSON: "),
    (b"[]", {"Content-Type": "application/json"}, "the body: expected a JSON object"),
    (b"3", {"Content-Type": "application/json"}, "the body: expected a JSON object"),
    (b"", {"Content-Type": "application/json"}, "the body: expected a JSON object"),
    (b"\xff", {"Content-Type": "application/json"}, ""),
    (b'{"prompt": "a"}', {"Content-Type": "text/plain"}, "the body: expected a JSON object, sent with Content-Type"),
    (b'{"prompt": ' + b"[" * 100_000, {"Content-Type": "application/json"}, ""),
    (b"{}", {"Content-Type": "application/json"}, "prompt: is missing"),
    (b'{"prompt": "a", "temperature": NaN}', {"Content-Type": "application/json"}, "temperature: "),
    (b'{"prompt": "a", "temperature": 1e999}', {"Content-Type": "application/json"}, "temperature: "),
])
def test_a_body_that_is_no_request_is_refused(tokenizer, content, headers, said):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        response = api.request("POST", "/v1/completions", content=content, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(said) and error["type"] == "invalid_request_error"


def test_half_a_surrogate_pair_in_a_prompt_is_answered(tokenizer):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        content = json.dumps({"prompt": "a\ud800", "echo": True}).encode()
        response = api.request("POST", "/v1/completions", content=content,
                               headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400)


def test_other_paths_and_methods_are_refused_in_the_same_shape(tokenizer):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        for method, path, status in (("GET", "/v1/completions", 405), ("POST", "/v1/embeddings", 404)):
            response = api.request(method, path)
            assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param",
                                                                                        "code"}
