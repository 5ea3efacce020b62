"""The openai client, every response checked against its types, and a real model."""
import json
import os

import openai
import pydantic
import pytest
from openai import OpenAI

MODEL = os.environ["QWEN_MODEL"]
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a place.", "strict": True, "parameters": {
        "type": "object", "properties": {"place": {"type": "string", "maxLength": 20},
                                         "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["place", "unit"], "additionalProperties": False}}}


class Capital(pydantic.BaseModel):
    country: str = pydantic.Field(max_length=20)
    inhabitants: int = pydantic.Field(ge=0, le=10**8)
    is_large: bool


@pytest.fixture(scope="module")
def client():
    with OpenAI(base_url=os.environ["QWEN_URL"] + "/v1", api_key="any", max_retries=0, timeout=300,
                _strict_response_validation=True) as client:
        yield client


def ask(client, messages=HELLO, **fields):
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24,
                                             **fields})


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_a_whole_answer(client):
    answer = ask(client)
    assert answer.choices[0].message.role == "assistant" and "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.model == MODEL
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 24


def test_streamed_and_whole_answers_are_equal(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason


def test_length_is_told(client):
    answer = ask(client, max_completion_tokens=2, max_tokens=openai.omit)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_the_helper_for_streams(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0, max_tokens=24) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == ask(client).choices[0].message.content


def test_several_answers_and_seeds(client):
    def texts(**fields):
        answer = ask(client, n=3, temperature=1.0, seed=-9007199254740991, **fields)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert first == texts() and len(set(first)) > 1


def test_stop_words_are_cut_off(client):
    assert "Paris" not in ask(client, stop=["Paris"]).choices[0].message.content
    assert ask(client, stop="Paris").choices[0].finish_reason == "stop"


def test_log_probabilities(client):
    answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=6).choices[0]
    tokens = answer.logprobs.content
    assert "".join(token.token for token in tokens).strip() == answer.message.content.strip()
    for token in tokens:
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token and len(token.top_logprobs) == 3
        # Greedy: what was chosen is the likeliest.
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0
    streamed = [token for chunk in ask(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=True)
                for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in tokens], abs=1e-5)


def test_a_bias_bans_a_token(client):
    with OpenAI(base_url=os.environ["QWEN_URL"], api_key="any") as plain:
        ids = plain.post("/tokenize", body={"prompt": " Paris"}, cast_to=object)["tokens"]
    answer = ask(client, logit_bias={str(token): -100 for token in ids})
    assert " Paris" not in answer.choices[0].message.content


def test_structured_answers_parse(client):
    parsed = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Capital, max_tokens=200,
                                           temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, Capital)
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Capital, max_tokens=200,
                                        temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_a_json_object(client):
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=200, temperature=1, seed=1)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_that_are_demanded_fit_their_schema(client, choice):
    whole = ask(client, tools=[WEATHER], tool_choice=choice, max_tokens=300)
    call = whole.choices[0].message.tool_calls[0]
    assert whole.choices[0].finish_reason == "tool_calls" and call.id and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"place", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice=choice,
                                        temperature=0, max_tokens=300) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    assert streamed.function.parsed_arguments == arguments


def test_raw_responses(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert raw.request_id and raw.parse().choices
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO, max_tokens=2,
                                                                stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("fields, param", [
    ({"temperature": -1}, "temperature"), ({"max_tokens": 0}, "max_tokens"), ({"n": 0}, "n"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"extra_body": {"max_token": 3}}, "max_token"), ({"audio": {"format": "wav", "voice": "alloy"}}, "audio"),
    ({"tool_choice": "required"}, "tool_choice"), ({"logit_bias": {"foo": 1}}, "logit_bias"),
    ({"response_format": {"type": "sound"}}, "response_format.type")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_by_name(client, fields, param, stream):
    with pytest.raises(openai.BadRequestError) as info:
        ask(client, stream=stream, **fields)
    assert info.value.param == param and info.value.type == "invalid_request_error"
    assert param.split("[")[0].split(".")[0] in info.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_told_with_both_numbers(client, stream):
    with pytest.raises(openai.BadRequestError) as info:
        ask(client, [{"role": "user", "content": "word " * 5000}], stream=stream)
    assert info.value.code == "context_length_exceeded"
    assert info.value.body["n_prompt_tokens"] > info.value.body["n_ctx"] > 0


def test_completions(client):
    def asked(client, **fields):
        return client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0,
                                         **fields)

    text = asked(client).choices[0].text
    assert " Paris" in text
    # Until the last chunk `finish_reason` is null, as OpenAI's server has it, which its client's types don't know.
    with OpenAI(base_url=os.environ["QWEN_URL"] + "/v1", api_key="any") as loose:
        chunks = list(asked(loose, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    scored = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=4, temperature=0, logprobs=2, n=2)
    assert [len(choice.logprobs.tokens) for choice in scored.choices] == [4, 4]


def test_completions_with_their_prompts():
    # A first token has no log probability: OpenAI's server says null, which its client's own types don't know.
    with OpenAI(base_url=os.environ["QWEN_URL"] + "/v1", api_key="any") as client:
        whole = client.completions.create(model=MODEL, prompt=["The capital of France is", "2 + 2 ="], max_tokens=4,
                                          temperature=0, logprobs=2, echo=True)
    assert [choice.index for choice in whole.choices] == [0, 1]
    for choice, prompt in zip(whole.choices, ("The capital of France is", "2 + 2 =")):
        logprobs = choice.logprobs
        assert choice.text.startswith(prompt) and "".join(logprobs.tokens) == choice.text
        assert logprobs.token_logprobs[0] is None and max(logprobs.token_logprobs[1:]) <= 0
        assert [choice.text[offset:][:len(token)] for offset, token in zip(logprobs.text_offset, logprobs.tokens)
                ] == logprobs.tokens
