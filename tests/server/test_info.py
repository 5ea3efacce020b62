"""What a server tells without generating."""
import pytest
from starlette.testclient import TestClient

from helpers.scripted import ScriptedEngine
from qwen_mindspore import __version__
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.app import create_app
from qwen_mindspore.server.metrics import Metrics
from qwen_mindspore.server.service import Service
from qwen_mindspore.text.tokenizer import QwenTokenizer


class Runner:
    """What is asked of one here."""

    is_dead = False

    def __init__(self, engine):
        self.engine, self.tickets = engine, {}


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture(scope="module")
def service(tokenizer):
    engine = ScriptedEngine("Hello!", room=300)
    settings = GenerationSettings(chat_format="chatml", do_sample=True, top_k=5)
    return Service("org/qwen-test", tokenizer, engine.config, settings, runner=Runner(engine),
                   metrics=Metrics("org/qwen-test"), created=1700000000)


@pytest.fixture
def client(service):
    service.state = "ready"
    return TestClient(create_app(service))


def post(client, path, **fields):
    return client.post(path, json=fields)


def error_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


# Is it well?

@pytest.mark.parametrize("state, health, ready", [("ready", 200, 200), ("draining", 200, 503), ("loading", 503, 503),
                                                  ("dead", 503, 503)])
def test_health_is_whether_it_lives_and_ready_whether_more_may_come(client, service, state, health, ready):
    service.state = state
    assert client.get("/health").status_code == health
    response = client.get("/ready")
    assert response.status_code == ready
    if ready == 503:
        error = error_of(response, 503)
        assert (error["type"], error["code"]) == ("unavailable_error", state)
        assert response.headers["Retry-After"] == "5"
    else:
        assert response.json() == {"status": "ok", "running": 0, "waiting": 0}


def test_an_engine_that_died_is_told(client, service, monkeypatch):
    monkeypatch.setattr(service.runner, "is_dead", True)
    assert error_of(client.get("/health"), 503)["message"] == "the engine has died: start the server again"


def test_the_version_is_that_of_the_package(client):
    assert client.get("/version").json() == {"version": __version__}


def test_metrics_are_prometheus_text(client):
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'qwen:prompt_tokens_total{model_name="org/qwen-test"} 0.0' in response.text


# The model

def test_the_one_model_has_a_card(client):
    listed = client.get("/v1/models").json()
    card, = listed["data"]
    assert listed["object"] == "list" and card == client.get("/v1/models/org/qwen-test").json()
    assert card["id"] == "org/qwen-test" and card["object"] == "model" and card["created"] == 1700000000
    assert card["max_model_len"] == 300 and card["defaults"] == {
        "max_tokens": 512, "temperature": 1.0, "top_p": 1.0, "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": None}


def test_another_model_is_not_found_in_openais_shape(client):
    error = error_of(client.get("/v1/models/gpt-4"), 404)
    assert error == {"message": "model: expected org/qwen-test, found gpt-4", "type": "not_found_error",
                     "param": "model", "code": "model_not_found"}


@pytest.mark.parametrize("method, path", [("GET", "/v1/models"), ("GET", "/v1/models/org/qwen-test"),
                                          ("GET", "/tokenizer_info"), ("POST", "/tokenize"), ("POST", "/detokenize")])
def test_while_the_model_is_loaded_the_rest_is_asked_to_come_again(client, service, method, path):
    service.state = "loading"
    body = {"json": {"prompt": "a"} if path == "/tokenize" else {"tokens": [1]}} if method == "POST" else {}
    response = client.request(method, path, **body)
    assert error_of(response, 503)["code"] == "loading" and response.headers["Retry-After"] == "5"


# The tokenizer

def test_a_text_as_vllm_tokenizes_it(client):
    assert post(client, "/tokenize", prompt="hé").json() == {"count": 3, "max_model_len": 300,
                                                            "tokens": [104, 195, 169]}
    strings = post(client, "/tokenize", prompt="hi", return_token_strs=True, model="any", add_special_tokens=False)
    assert strings.json()["token_strs"] == ["h", "i"]


def test_a_text_as_llama_cpp_tokenizes_it(client):
    assert post(client, "/tokenize", content="hi", add_special=True).json() == {"tokens": [104, 105]}
    pieces = post(client, "/tokenize", content="hé", with_pieces=True).json()["tokens"]
    assert pieces == [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]


def test_control_tokens_stay_text_unless_they_are_asked_for(client, tokenizer):
    assert len(post(client, "/tokenize", content="<|im_end|>").json()["tokens"]) == 10
    assert len(post(client, "/tokenize", prompt="a<|im_end|>").json()["tokens"]) == 11
    asked = post(client, "/tokenize", prompt="a<|im_end|>", parse_special=True).json()["tokens"]
    assert asked == [97, tokenizer.im_end_id]


def test_the_name_of_a_control_token_alone_is_asked_for_as_that_token(client, tokenizer):
    asked = post(client, "/tokenize", prompt="<|endoftext|>", add_special_tokens=False)
    assert asked.json()["tokens"] == [tokenizer.eod_id]


@pytest.mark.parametrize("text", ["", "hello", "你好", "a<|im_start|>b", "\n\n  x\t", "🙂"])
def test_ids_and_text_go_round(client, text):
    ids = post(client, "/tokenize", content=text).json()["tokens"]
    assert post(client, "/detokenize", tokens=ids).json() == {"prompt": text, "content": text}


# Conversations

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}


def test_a_conversation_is_rendered_as_it_would_be_answered(client):
    assert post(client, "/apply-template", messages=HI).json() == {"prompt": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n")}


def test_tools_are_rendered_as_well(client):
    prompt = post(client, "/apply-template", messages=HI, tools=[TOOL]).json()["prompt"]
    assert "\n\nweather: Call this tool to interact with the weather API." in prompt
    assert prompt.endswith("Begin!\n\nQuestion: Hi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL]}, {"functions": [TOOL["function"]]}])
def test_counted_and_tokenized_a_conversation_is_the_same(client, tokenizer, extra):
    ids = post(client, "/tokenize", messages=HI, **extra).json()
    count = post(client, "/v1/chat/completions/input_tokens", messages=HI, **extra).json()["input_tokens"]
    assert ids["count"] == len(ids["tokens"]) == count
    assert tokenizer.decode(ids["tokens"]) == post(client, "/apply-template", messages=HI, **extra).json()["prompt"]


@pytest.mark.parametrize("path", ["/apply-template", "/v1/chat/completions/input_tokens", "/tokenize"])
def test_a_conversation_that_is_none_is_refused_wherever_it_is_given(client, path):
    bad = [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hi"}]
    error = error_of(post(client, path, messages=bad), 400)
    assert error["param"].startswith("messages[1]")
    assert error_of(post(client, path, messages=HI, tool=[]), 400)["param"] == "tool"


# What is wrong

@pytest.mark.parametrize("path, fields, said, param", [
    ("/tokenize", {}, "expected one of prompt, content and messages, found none", "prompt"),
    ("/tokenize", {"prompt": "a", "content": "b"},
     "expected one of prompt, content and messages, found prompt and content", "prompt"),
    ("/tokenize", {"prompt": 3}, "prompt: ", "prompt"),
    ("/tokenize", {"prompt": "a", "with_piece": True},
     "Unrecognized request argument: with_piece (did you mean with_pieces?)", "with_piece"),
    ("/detokenize", {}, "tokens: is missing", "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens", "tokens[0]"),
    ("/detokenize", {"tokens": [10**6]}, "tokens: token id 1000000: expected 0 to ", "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens", "tokens[0]"),
    ("/detokenize", {"tokens": [True]}, "tokens", "tokens[0]"),
    ("/detokenize", {"tokens": [1], "other": 1}, "other", "other"),
])
def test_what_is_wrong_is_told_by_name(client, path, fields, said, param):
    error = error_of(post(client, path, **fields), 400)
    assert error["message"].startswith(said) and error["param"] == param


def test_what_lm_eval_needs_to_know_of_the_tokenizer(client, tokenizer):
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == info["pad_token"] == "<|endoftext|>" and info["bos_token"] is None
    assert info["vocab_size"] == tokenizer.vocab_size
    assert info["model_max_length"] == 300 and info["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "你"}, {"role": "assistant", "content": "好"}, {"role": "user", "content": "?"}],
])
def test_the_template_writes_what_we_write(client, messages):
    import jinja2

    from qwen_mindspore.text.chatml import write_prompt
    template = jinja2.Environment().from_string(client.get("/tokenizer_info").json()["chat_template"])
    expected, _ = write_prompt(tokenizer_of(client), messages)
    assert template.render(messages=messages, add_generation_prompt=True) == expected


def tokenizer_of(client):
    return client.app.state.service.tokenizer
