"""Tools over the interface: both generations of it, whole and streamed; the form itself is tested in tests/text."""
import json

import pytest

from helpers import DATA
from helpers.api import Api
from helpers.scripted import ScriptedEngine

WEATHER = {"name": "get_weather", "description": "Weather of a place.",
           "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
CALL = 'Thought: I should look.\nAction: get_weather\nAction Input: {"place": "北京"}\nObservation: made up'
ANSWER = "Thought: I now know the final answer.\nFinal Answer: It is warm."
USER = {"role": "user", "content": "Weather?"}


def ask(tokenizer, script, engine=None, changes=None, **fields):
    with Api(tokenizer, engine or ScriptedEngine(script, pace=0.0005, room=4096), **(changes or {})) as api:
        return api.chat(max_tokens=300, **fields)


def joined(events):
    """The message and finish reason that a client puts together from the events of a stream."""
    message, reason = {}, None
    for event in events:
        (choice,) = event["choices"]
        reason = choice["finish_reason"] or reason
        for key, value in choice["delta"].items():
            if key == "tool_calls":
                (call,) = value
                assert call["index"] == 0
                if "id" in call:
                    message["tool_calls"] = [{**call, "function": dict(call["function"])}]
                else:
                    message["tool_calls"][0]["function"]["arguments"] += call["function"]["arguments"]
            elif key == "function_call":
                known = message.setdefault(key, {})
                for part, text in value.items():
                    known[part] = known.get(part, "") + text
            elif value is not None:
                message[key] = message.get(key, "") + value
    return message, reason


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_a_tool(tokenizer, stream):
    answer = ask(tokenizer, CALL, tools=TOOLS, stream=stream)
    if stream:
        message, reason = joined(answer)
        assert answer[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
        assert answer[-1]["choices"][0]["delta"] == {}
        assert message["tool_calls"][0].pop("index") == 0
        first = next(event for event in answer if "tool_calls" in event["choices"][0]["delta"])
        assert first["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}
    else:
        message, reason = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
        assert message["content"] is None
    assert reason == "tool_calls" and message["reasoning_content"] == "I should look."
    (call,) = message["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "get_weather", "arguments": '{"place": "北京"}'}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_a_function(tokenizer, stream):
    answer = ask(tokenizer, CALL, functions=[WEATHER, TIME], stream=stream)
    message, reason = joined(answer) if stream else (answer["choices"][0]["message"],
                                                     answer["choices"][0]["finish_reason"])
    assert reason == "function_call" and "tool_calls" not in message
    assert message["function_call"] == {"name": "get_weather", "arguments": '{"place": "北京"}'}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_a_call(tokenizer, stream):
    answer = ask(tokenizer, ANSWER, tools=TOOLS, stream=stream)
    message, reason = joined(answer) if stream else (answer["choices"][0]["message"],
                                                     answer["choices"][0]["finish_reason"])
    assert reason == "stop" and message["content"] == "It is warm." and "tool_calls" not in message
    assert message["reasoning_content"] == "I now know the final answer."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script, content", [(CALL, "I should look."), (ANSWER, "It is warm.")])
def test_thoughts_are_content_as_in_qwens_server_if_the_service_says_so(tokenizer, script, content, stream):
    answer = ask(tokenizer, script, functions=[WEATHER], stream=stream, changes={"thought": "content"})
    message = joined(answer)[0] if stream else answer["choices"][0]["message"]
    assert message["content"] == content and "reasoning_content" not in message
    assert ("function_call" in message) == (script == CALL)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name, arguments", [
    ("Action", "{}"), ("Action:", "{}"), ("搜索🚀", '{"a": "北京"}'), ("get_weather", '{"a": "x\\nFinal Answer: y"}'),
    ("get_weather", '{\n    "a": "Action: get_time",\n    "b": "Thought: x"\n}')])
def test_names_and_arguments_that_look_like_the_form_are_whole(tokenizer, name, arguments, stream):
    script = f"Thought: x\nAction: {name}\nAction Input: {arguments}\nObservation: made up"
    answer = ask(tokenizer, script, tools=[{"type": "function", "function": {"name": name}}], stream=stream)
    message = joined(answer)[0] if stream else answer["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": name, "arguments": arguments}
    assert message["reasoning_content"] == "x" and not message.get("content")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_says_so(tokenizer, stream):
    with Api(tokenizer, ScriptedEngine(CALL, room=4096)) as api:
        answer = api.chat(tools=TOOLS, stream=stream, max_tokens=69)
    message, reason = joined(answer) if stream else (answer["choices"][0]["message"],
                                                     answer["choices"][0]["finish_reason"])
    assert reason == "length" and message["tool_calls"][0]["function"]["arguments"] == '{"place": "'


def test_observations_are_the_tools_to_make(tokenizer):
    engine = ScriptedEngine(CALL, room=4096)
    ask(tokenizer, None, engine=engine, tools=TOOLS, stop="zzz")
    assert engine.requests[0].settings.stop_words == ("zzz", "Observation:")


def test_the_prompt_holds_the_tools_and_the_loop_so_far(tokenizer):
    engine = ScriptedEngine(" I know.\nFinal Answer: Warm.", room=4096)
    answer = ask(tokenizer, None, engine=engine, tools=TOOLS, messages=[
        USER, {"role": "assistant", "content": None, "reasoning_content": "I should look.", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "22 <|im_end|>"}])
    prompt = tokenizer.decode(engine.requests[0].prompt)
    assert "get_weather: Call this tool to interact with the get_weather API." in prompt
    assert prompt.endswith("Thought: I should look.\nAction: get_weather\nAction Input: {}\n"
                           "Observation: 22 <|im_end|>\nThought:")
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("I know.", "Warm.")


@pytest.mark.parametrize("fields", [{"tools": TOOLS, "tool_choice": "none"}, {"tools": []}, {"functions": []},
                                    {"functions": [WEATHER], "function_call": "none"}, {"tool_choice": "auto"}])
def test_without_tools_to_call_there_is_no_instruction_and_text_is_text(tokenizer, fields):
    engine = ScriptedEngine(CALL, room=4096)
    answer = ask(tokenizer, None, engine=engine, **fields)
    assert answer["choices"][0]["message"]["content"] == CALL
    assert "Call this tool" not in tokenizer.decode(engine.requests[0].prompt)


def test_parallel_calls_may_be_allowed_or_not(tokenizer):
    for value in (True, False):
        assert ask(tokenizer, CALL, tools=TOOLS, parallel_tool_calls=value)["choices"][0]["finish_reason"] == \
            "tool_calls"


# Qwen's own server

GOLDEN = json.loads((DATA / "tools/react.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["name"])
def test_prompts_are_those_of_qwens_server(tokenizer, case):
    engine = ScriptedEngine("x", room=8192)
    fields = {"messages": case["messages"], "functions": case["functions"]}
    with Api(tokenizer, engine) as api:
        if case.get("error"):
            assert api.refused(case["error"], **fields)["param"].startswith("messages")
        else:
            api.chat(**fields)
            assert tokenizer.decode(engine.requests[0].prompt) == case["prompt"]


@pytest.mark.parametrize("case", GOLDEN["answers"], ids=lambda case: case["text"])
def test_answers_are_those_of_qwens_server(tokenizer, case):
    answer = ask(tokenizer, case["text"], functions=[{"name": "w", "parameters": {}}], changes={"thought": "content"})
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == case["content"]
    assert choice["message"].get("function_call") == case["function_call"]
    assert choice["finish_reason"] == case["finish_reason"]


# Grammars

class Grammars:
    """Notes what is asked for."""

    def __init__(self):
        self.asked = []

    def react(self, tools, choice, is_open):
        if any(tool.parameters == {"type": "hiccup"} for tool in tools):
            raise ValueError("Invalid type: hiccup")
        self.asked.append(([tool.name for tool in tools], choice, bool(is_open)))
        return Everything()


class Everything:
    is_over = False

    def mask(self, logits):
        pass

    def accept(self, token):
        pass


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
    {"type": "function", "function": {"name": "get_time"}}]}}


@pytest.mark.parametrize("fields, names, choice", [
    ({"tools": TOOLS}, ["get_weather", "get_time"], "auto"),
    ({"tools": TOOLS, "tool_choice": "required"}, ["get_weather", "get_time"], "required"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_time"}}},
     ["get_weather", "get_time"], "get_time"),
    ({"tools": TOOLS, "tool_choice": ALLOWED}, ["get_time"], "required"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
        {"type": "function", "name": "get_weather"}]}}, ["get_weather"], "auto"),
    ({"functions": [WEATHER, TIME], "function_call": {"name": "get_time"}}, ["get_weather", "get_time"], "get_time"),
    ({"functions": [WEATHER], "function_call": "auto"}, ["get_weather"], "auto"),
])
def test_what_may_be_called_is_for_the_grammar_to_hold(tokenizer, fields, names, choice):
    engine, grammars = ScriptedEngine(CALL, room=4096), Grammars()
    ask(tokenizer, None, engine=engine, changes={"grammars": grammars}, n=2, **fields)
    assert grammars.asked == [(names, choice, False)] * 2
    assert engine.requests[0].grammar is not engine.requests[1].grammar
    # Within arguments that fit their schema it can't stand at the beginning of a line.
    assert engine.requests[0].settings.stop_words == ("\nObservation:",)


@pytest.mark.parametrize("fields, param, said", [
    ({"tools": TOOLS, "functions": [WEATHER]}, "functions", "expected tools or functions, found both"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "expected 'function', found 'retrieval'"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "expected a name"),
    ({"tools": TOOLS * 2}, "tools[2]", "found 'get_weather' again"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "found 'sometimes'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice",
     "no such tool 'fly', expected one of get_weather, get_time"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "expected"),
    ({"functions": [WEATHER], "function_call": "required"}, "function_call", "found 'required'"),
    ({"tool_choice": "required"}, "tool_choice", "expected tools with it, found none"),
    ({"function_call": {"name": "x"}}, "function_call", "expected functions with it"),
    ({"tools": TOOLS, "function_call": {"name": "x"}}, "function_call", "expected functions with it"),
    ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format", "expected text where tools"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "hiccup"}}}]}, "tools",
     "tools: Invalid type: hiccup"),
    ({"tools": [{"type": "function", "function": {"name": f"t{i}"}} for i in range(129)]}, "tools",
     "expected at most 128, found 129"),
])
def test_tools_that_can_not_be_had_are_refused_by_place(tokenizer, fields, param, said):
    grammars = Grammars()
    grammars.json_object = Everything
    with Api(tokenizer, ScriptedEngine("x", room=100_000), grammars=grammars) as api:
        error = api.refused(**fields)
    assert error["param"].startswith(param) and said in error["message"]


@pytest.mark.parametrize("changes", [{}, {"grammars": Grammars(), "tool_grammar": False}])
def test_without_grammars_no_call_is_demanded(tokenizer, changes):
    with Api(tokenizer, ScriptedEngine(CALL, room=4096), **changes) as api:
        error = api.refused(tools=TOOLS, tool_choice="required")
        assert error["param"] == "tool_choice" and "a call can't be made sure of" in error["message"]
        assert api.chat(tools=TOOLS, max_tokens=300)["choices"][0]["finish_reason"] == "tool_calls"
