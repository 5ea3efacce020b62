"""Qwen's own agents over this server: by its own prompts, by the server's tools, and by ReAct."""
import json
import os

import pytest
from qwen_agent.agents import Assistant, ReActChat
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool

SERVER = {"model_type": "oai", "model": os.environ["QWEN_MODEL"], "model_server": os.environ["QWEN_URL"] + "/v1",
          "api_key": "EMPTY"}
QUESTION = [{"role": "user", "content": "What is the weather in 'Boston'?"}]
calls = []


@register_tool("get_weather")
class Weather(BaseTool):
    description = "The weather of a place."
    parameters = {"type": "object", "properties": {"place": {"type": "string"}},  # noqa: RUF012
                  "required": ["place"]}

    def call(self, params, **kwargs):
        calls.append(json.loads(params))
        return "22 degrees"


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def last(agent, messages=QUESTION):
    """The last of what an agent gives."""
    response = []
    for response in agent.run(messages=[dict(message) for message in messages]):
        pass
    return response


def llm(**settings):
    return {**SERVER, "generate_cfg": {"top_p": 0.8, "max_retries": 0, **settings}}


def test_an_assistant_without_tools():
    assert last(Assistant(llm=llm()))[-1]["content"] == "You said: What is the weather in 'Boston'?"


@pytest.mark.parametrize("form", ["qwen", "nous"])
def test_an_assistant_with_tools_by_its_own_prompts(form):
    messages = last(Assistant(llm=llm(fncall_prompt_type=form), function_list=["get_weather"]))
    assert calls == [{"place": "Boston"}]
    assert "22 degrees" in messages[-1]["content"]


def test_a_call_by_the_older_prompts_whole():
    messages = get_chat_model(llm(fncall_prompt_type="qwen")).chat(messages=QUESTION, functions=[Weather().function],
                                                                   stream=False)
    assert json.loads(messages[-1]["function_call"]["arguments"]) == {"place": "Boston"}


def test_an_assistant_with_the_servers_tools():
    messages = last(Assistant(llm=llm(use_raw_api=True), function_list=["get_weather"]))
    assert calls == [{"place": "Boston"}]
    assert messages[-1]["content"] == "22 degrees"
    assert any(message.get("reasoning_content") for message in messages)


def test_an_agent_of_react():
    messages = last(ReActChat(llm=llm(), function_list=["get_weather"]))
    assert calls == [{"place": "Boston"}]
    assert messages[-1]["content"].endswith("Final Answer: 22 degrees")
