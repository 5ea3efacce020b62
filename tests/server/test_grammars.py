"""Tools and forms over the interface with the engine: a model that knows nothing writes calls that can't be wrong."""
import json

import pytest

from helpers.api import Api, events_of
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.grammar import Grammars

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

WEATHER = {"name": "get_weather", "description": "Weather of a place.", "parameters": {
    "type": "object", "properties": {"place": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]},
                                     "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["place", "unit"], "additionalProperties": False}}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
SCHEMAS = {function["name"]: function["parameters"] for function in (WEATHER, TIME)}


@pytest.fixture(scope="module")
def api(build_tiny, tokenizer):
    """The golden model, whose weights are random: what it writes has nothing to do with what it is asked."""
    model = build_tiny(use_past=True, seq_length=4096, block_size=32, num_blocks=160)
    engine = Engine(model, max_batch=4)
    ends = [tokenizer.im_end_id, tokenizer.eod_id]
    with Api(tokenizer, engine, grammars=Grammars(tokenizer, model.config.vocab_size, ends)) as api:
        yield api
    assert not engine.sequences


def call_of(answer, stream):
    """(the call's function, finish reason, thought)"""
    if not stream:
        message = answer["choices"][0]["message"]
        return message["tool_calls"][0]["function"], answer["choices"][0]["finish_reason"], \
            message.get("reasoning_content", "")
    call, reason, thought = {}, None, ""
    for event in answer:
        (choice,) = event["choices"]
        reason = choice["finish_reason"] or reason
        thought += choice["delta"].get("reasoning_content") or ""
        for part in choice["delta"].get("tool_calls", ()):
            for key, text in part["function"].items():
                call[key] = call.get(key, "") + text
    return call, reason, thought


@pytest.mark.parametrize("seed", range(2))
def test_a_call_that_is_demanded_comes_and_fits(api, seed):
    fields = {"tools": TOOLS, "tool_choice": "required", "temperature": 1.3, "seed": seed, "max_tokens": 900}
    answers = [call_of(api.chat("Weather?", stream=stream, **fields), stream) for stream in (False, True)]
    assert answers[0] == answers[1]
    function, reason, _ = answers[0]
    assert reason == "tool_calls"
    jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_whole_where_few_tokens_are_left_for_it(api, stream):
    fields = {"tools": TOOLS[:1], "tool_choice": "required", "temperature": 1.3, "seed": 4, "max_tokens": 100}
    function, reason, thought = call_of(api.chat("Weather?", stream=stream, **fields), stream)
    assert reason == "tool_calls" and thought
    jsonschema.validate(json.loads(function["arguments"]), WEATHER["parameters"])


def test_an_answer_in_a_form_is_whole_where_few_tokens_are_left_for_it(api):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "minItems": 2, "items": {
        "type": "string"}}}}
    for most in (8, 9, 30):
        (choice,) = api.chat("Hi", response_format=form, temperature=1, seed=most, max_tokens=most)["choices"]
        assert choice["finish_reason"] == "stop" and len(json.loads(choice["message"]["content"])) >= 2


@pytest.mark.parametrize("older", [False, True])
def test_the_tool_that_is_named_is_called(api, older):
    fields = {"functions": [WEATHER, TIME], "function_call": {"name": "get_time"}} if older else {
        "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_time"}}}
    choice = api.chat("Time?", temperature=1, seed=1, max_tokens=900, **fields)["choices"][0]
    function = choice["message"]["function_call"] if older else choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == ("function_call" if older else "tool_calls")
    assert function["name"] == "get_time" and json.loads(function["arguments"]) == {}


def test_the_arguments_may_hold_what_ends_an_answer_otherwise(api):
    tool = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"const": "Observation: x"}},
                                          "required": ["text"], "additionalProperties": False}}
    choice = api.chat("Say it.", functions=[tool], function_call={"name": "say"}, temperature=1, seed=2,
                      max_tokens=900)["choices"][0]
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {"text": "Observation: x"}


def test_an_answer_in_a_form_fits_it(api):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
              "required": ["a", "b"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "ab", "schema": schema}}
    answer = api.chat("Hi", response_format=form, temperature=1, seed=3, n=3, max_tokens=400)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    events = api.post("/v1/completions", {"prompt": "Hi", "response_format": form, "temperature": 1, "seed": 3,
                                          "max_tokens": 400, "stream": True}).text
    text = "".join(event["choices"][0]["text"] for event in events_of(events))
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("fields, param, said", [
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "hiccup"}}}]}, "tools", "x"),
    ({"functions": [{"name": "x", "parameters": {"type": "hiccup"}}]}, "functions", "x"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hiccup"}}}},
     "response_format", "hiccup"),
    ({"tools": TOOLS, "tool_choice": "required", "messages": [{"role": "user", "content": "a"},
                                                              {"role": "assistant", "content": "b"}]},
     "tool_choice", "behind an answer that was begun"),
])
def test_what_no_grammar_can_hold_is_refused_by_field(api, fields, param, said):
    error = api.refused(**fields)
    assert error["param"] == param and error["message"].startswith(f"{param}: ") and said in error["message"]
    assert error["message"].count(f"{param}: ") == 1
