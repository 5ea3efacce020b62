"""Whatever a model writes and whatever is asked for, a stream joins to the whole answer, and bad bodies are told."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.api import Api
from helpers.properties import tried, values
from helpers.scripted import ScriptedEngine
from qwen_mindspore.server.protocol import ChatRequest, CompletionRequest

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
PARTS = ["Thought:", "\nThought: ", "\nAction:", " a", "\nAction Input:", " {}", "\nObservation:", "\nFinal Answer: ",
         "\n", " ", "x", "\u4e2d", "\U0001f600", "stop", "sto", "\u2028"]
SCRIPTS = st.lists(st.sampled_from(PARTS) | st.integers(0, 255), max_size=14).map(
    lambda parts: [byte for part in parts for byte in ([part] if isinstance(part, int) else part.encode())])


@pytest.fixture(scope="module")
def api(tokenizer):
    with Api(tokenizer, ScriptedEngine(max_batch=3, room=8192)) as api:
        yield api


def joined_chat(events, count):
    """What a client makes of a stream: for each choice its message's parts, its log probabilities, ids and end."""
    told = [{"content": "", "reasoning_content": "", "name": None, "arguments": "", "logprobs": [], "ids": [],
             "reason": None} for _ in range(count)]
    for event in events:
        for choice in event["choices"]:
            one, delta = told[choice["index"]], choice["delta"]
            assert one["reason"] is None, "nothing follows the end"
            one["content"] += delta.get("content") or ""
            one["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                one["name"] = call["function"].get("name", one["name"])
                one["arguments"] += call["function"]["arguments"]
            one["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
            one["ids"] += choice["token_ids"]
            one["reason"] = choice["finish_reason"]
    return told


def whole_chat(answer):
    told = []
    for choice in answer["choices"]:
        message, logprobs = choice["message"], choice["logprobs"] or {"content": []}
        call = (message.get("tool_calls") or [{"function": {"name": None, "arguments": ""}}])[0]["function"]
        told.append({"content": message["content"] or "", "reasoning_content": message.get("reasoning_content", ""),
                     "name": call["name"], "arguments": call["arguments"], "logprobs": logprobs["content"],
                     "ids": choice["token_ids"], "reason": choice["finish_reason"]})
    return told


@tried(60)
@given(SCRIPTS, st.fixed_dictionaries({}, optional={
    "tools": st.just(TOOLS), "stop": st.sampled_from(["stop", ["stop", "x"]]), "max_tokens": st.integers(1, 40),
    "n": st.integers(1, 3), "logprobs": st.booleans(), "ignore_eos": st.booleans()}))
def test_a_stream_joins_to_the_whole_answer(api, script, fields):
    api.engine.script = script
    fields = {"max_tokens": 60, **fields, "return_token_ids": True}
    answer = api.chat(**fields)
    *events, last = api.chat(stream=True, stream_options={"include_usage": True}, **fields)
    assert joined_chat(events, fields.get("n", 1)) == whole_chat(answer)
    assert last["usage"] == answer["usage"]
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])
    for choice in answer["choices"]:
        # A part of a character has no text of its own.
        if choice["logprobs"] and "tools" not in fields and "\ufffd" not in choice["message"]["content"]:
            data = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
            assert data.decode().strip() == choice["message"]["content"]


@tried(40)
@given(SCRIPTS, st.fixed_dictionaries({}, optional={
    "stop": st.just("stop"), "max_tokens": st.integers(1, 40), "n": st.integers(1, 2), "echo": st.booleans(),
    "logprobs": st.integers(0, 3)}))
def test_a_streamed_completion_joins_to_the_whole_one(api, script, fields):
    api.engine.script = script
    prompts, fields = ["ab", "c"], {"return_token_ids": True, "ignore_eos": True, **fields}
    answer, joined = api.complete(prompts, **fields), {}
    for event in api.complete(prompts, stream=True, **fields):
        for choice in event["choices"]:
            one = joined.setdefault(choice["index"], {"text": "", "token_ids": [], "logprobs": None})
            one["text"] += choice["text"]
            one["token_ids"] += choice["token_ids"]
            one["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"]:
                one["logprobs"] = one["logprobs"] or {key: [] for key in choice["logprobs"]}
                for key, more in choice["logprobs"].items():
                    one["logprobs"][key] += more
    for choice in answer["choices"]:
        assert joined[choice["index"]] == {key: choice[key] for key in ("text", "token_ids", "logprobs",
                                                                        "finish_reason")}


FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatRequest.neutral})


@tried(150)
@given(st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
       st.dictionaries(st.sampled_from(FIELDS), values(), max_size=4) | values())
def test_whatever_is_asked_is_answered_or_refused_in_shape(api, path, body):
    api.engine.script = "Hello"
    if isinstance(body, dict):
        subject = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
        body = {**subject, "max_tokens": 5, **body}
    try:
        response = api.request("POST", path, json=body)
    except ValueError:  # no JSON: a NaN
        return
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"} and "\n" not in error["message"]
