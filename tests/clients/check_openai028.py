"""The openai client of 2023, called as the function-calling examples of Qwen's users call it."""
import json
import os

import openai
import pytest

openai.api_base, openai.api_key = os.environ["QWEN_URL"] + "/v1", "none"
MODEL = "Qwen"  # what their programs say; the server has one model
# Qwen's plugins have a list of parameters, OpenAI's functions a schema.
PLUGIN = {"name": "image_gen", "name_for_human": "文生图", "name_for_model": "image_gen",
          "description_for_model": "文生图是一个AI绘画服务。 Format the arguments as a JSON object.",
          "parameters": [{"name": "prompt", "description": "英文关键词", "required": True,
                          "schema": {"type": "string"}}]}
WEATHER = {"name": "get_current_weather", "description": "Get the current weather in a given location.",
           "parameters": {"type": "object", "properties": {
               "location": {"type": "string", "description": "The city"},
               "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, "required": ["location"]}}
QUESTION = {"role": "user", "content": "What is the weather in 'Boston'?"}


def call(messages, functions=None, **fields):
    if functions:
        fields["functions"] = functions
    return openai.ChatCompletion.create(model=MODEL, messages=messages, **fields)


def test_a_conversation_without_functions():
    response = call([{"role": "user", "content": "你好"}])
    assert response.choices[0].message.content == "You said: 你好"
    messages = [{"role": "user", "content": "你好"}, response.choices[0].message,
                {"role": "user", "content": "给我讲一个故事。"}]
    assert call(messages, temperature=0.5, top_p=0.8).choices[0].message.content == "You said: 给我讲一个故事。"


def test_a_function_in_openais_form():
    response = call([QUESTION], [WEATHER])
    message = response.choices[0].message
    assert response.choices[0].finish_reason == "function_call" and message.function_call.name == WEATHER["name"]
    assert json.loads(message.function_call.arguments) == {"location": "Boston", "unit": "celsius"}
    response = call([QUESTION, message, {"role": "function", "name": WEATHER["name"], "content": '{"t": 22}'}],
                    [WEATHER])
    assert response.choices[0].message.content == '{"t": 22}'
    assert response.choices[0].finish_reason == "stop"


def test_a_plugin_in_qwens_form():
    question = {"role": "user", "content": "image_gen: 画一只 'cat'"}
    message = call([question], [WEATHER, PLUGIN]).choices[0].message
    assert message.function_call.name == "image_gen"
    assert json.loads(message.function_call.arguments) == {"prompt": "cat"}
    # Written out by hand, as a program does that has kept text alone.
    messages = [question, {"role": "assistant", "content": "Thought: 我应该使用文生图API。", "function_call": {
        "name": "image_gen", "arguments": '{"prompt": "cat"}'}},
        {"role": "function", "name": "image_gen", "content": "cat.png"}]
    response = call(messages, [WEATHER, PLUGIN])
    assert response.choices[0].message.content == "cat.png"
    messages += [response.choices[0].message, {"role": "user", "content": "谢谢"}]
    assert call(messages, [WEATHER, PLUGIN]).choices[0].message.content == "Hello!"


def test_functions_are_streamed_which_qwens_own_server_refuses():
    chunks = list(call([QUESTION], [WEATHER], stream=True))
    calls = [chunk.choices[0].delta["function_call"] for chunk in chunks if "function_call" in chunk.choices[0].delta]
    assert calls[0]["name"] == WEATHER["name"]
    assert json.loads("".join(call.get("arguments", "") for call in calls))["location"] == "Boston"
    assert chunks[-1].choices[0].finish_reason == "function_call"


def test_a_function_that_is_named_is_called():
    response = call([{"role": "user", "content": "Hello"}], [WEATHER], function_call={"name": WEATHER["name"]})
    assert response.choices[0].message.function_call.name == WEATHER["name"]
    assert "function_call" not in call([QUESTION], [WEATHER], function_call="none").choices[0].message


def test_a_stream_of_text_with_a_stop_word():
    chunks = list(call([{"role": "user", "content": "one two three"}], stream=True, stop=["two"]))
    assert "".join(chunk.choices[0].delta.get("content") or "" for chunk in chunks).rstrip() == "You said: one"


def test_completions_and_models():
    assert openai.Completion.create(model=MODEL, prompt="Life:").choices[0].text.startswith(" it is what")
    assert len(openai.Model.list().data) == 1


def test_errors_are_what_the_client_knows():
    with pytest.raises(openai.error.InvalidRequestError) as info:
        call([QUESTION], temperature=-1)
    assert info.value.param == "temperature"
