"""The openai client and tools, with a "model" that knows when to call one: loops to their end, streamed and whole."""
import asyncio
import json
import os

import pytest
from openai import AsyncOpenAI, OpenAI

URL, MODEL = os.environ["QWEN_URL"] + "/v1", os.environ["QWEN_MODEL"]
QUESTION = {"role": "user", "content": "What is the weather in \"Boston\"?"}
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
              "required": ["place", "days"]}
TOOLS = [{"type": "function", "function": {"name": name, "description": about, "parameters": PARAMETERS}}
         for name, about in (("add_numbers", "Sums."), ("get_weather", "The weather of a place."))]


@pytest.fixture(scope="module")
def client():
    with OpenAI(base_url=URL, api_key="any", max_retries=0, timeout=60, _strict_response_validation=True) as client:
        yield client


def test_a_loop_over_a_tool(client):
    asked = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=TOOLS)
    message = asked.choices[0].message
    call = message.tool_calls[0]
    assert asked.choices[0].finish_reason == "tool_calls" and message.content is None
    assert message.reasoning_content == "I know what to do."
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"place": "Boston", "days": 1}
    told = client.chat.completions.create(model=MODEL, tools=TOOLS, messages=[
        QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}])
    assert told.choices[0].message.content == "22 degrees" and told.choices[0].finish_reason == "stop"
    assert not told.choices[0].message.tool_calls


def test_a_streamed_call(client):
    chunks = list(client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=TOOLS, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert calls[0].id and calls[0].type == "function" and calls[0].function.name == "get_weather"
    assert all(call.index == 0 and call.id is None and call.function.name is None for call in calls[1:])
    assert len(calls) > 3, "arguments come as they are written"
    assert json.loads("".join(call.function.arguments for call in calls)) == {"place": "Boston", "days": 1}
    assert "".join(delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)
                   ) == "I know what to do."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(delta.content for delta in deltas)


def test_an_answer_without_a_call(client):
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "Good morning!"}], "tools": TOOLS}
    whole = client.chat.completions.create(**fields).choices[0]
    assert whole.message.content == "Hello!" and whole.finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(
        **fields, stream=True))
    assert text == "Hello!"


def test_none_means_none(client):
    answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].message.content.startswith("You said:")


def test_a_named_tool_is_called(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "add_numbers"}})
    assert answer.choices[0].message.tool_calls[0].function.name == "add_numbers"


def test_several_past_calls_are_understood(client):
    calls = [{"id": f"call_{number}", "type": "function", "function": {
        "name": "get_weather", "arguments": json.dumps({"place": place, "days": 1})}}
        for number, place in enumerate(("Boston", "Paris"))]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": f"{number} degrees"}
               for number, call in enumerate(calls)]
    answer = client.chat.completions.create(model=MODEL, tools=TOOLS, messages=[
        QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}, *results])
    assert answer.choices[0].message.content == "1 degrees"


def test_many_at_once():
    async def ask(client, number):
        answer = await client.chat.completions.create(model=MODEL, messages=[
            {"role": "user", "content": f"Number {number}"}])
        return answer.choices[0].message.content

    async def scenario():
        async with AsyncOpenAI(base_url=URL, api_key="any", timeout=60, _strict_response_validation=True) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(40)))

    assert asyncio.run(scenario()) == [f"You said: Number {number}" for number in range(40)]
