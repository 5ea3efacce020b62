"""POST /v1/completions: texts and ids continued; log probabilities of prompts and answers."""
import pytest

from helpers.api import Api
from helpers.scripted import ScriptedEngine

END = 256  # <|endoftext|>, which ends a text that is no conversation


def ask(tokenizer, prompt="abc", script="Hello!", engine=None, **fields):
    with Api(tokenizer, engine or ScriptedEngine(script, end=END)) as api:
        return api.complete(prompt, **fields)


def text_of(events, index=0):
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


def test_a_completion_has_the_shape_of_openais(tokenizer):
    answer = ask(tokenizer)
    assert answer.pop("id").startswith("cmpl-") and answer.pop("created") > 1.7e9 and answer.pop("system_fingerprint")
    assert answer == {
        "object": "text_completion", "model": "qwen-test",
        "choices": [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10,
                  "prompt_tokens_details": {"cached_tokens": 0}}}


def test_a_completion_has_16_tokens_unless_asked_and_keeps_its_white_space(tokenizer):
    answer = ask(tokenizer, script=" \n" + "x" * 50)
    assert answer["choices"][0] == {"index": 0, "text": " \n" + "x" * 14, "logprobs": None, "finish_reason": "length"}


@pytest.mark.parametrize("prompt, ids", [
    ("abc", [[97, 98, 99]]), (["abc", "d"], [[97, 98, 99], [100]]), ([97, 98], [[97, 98]]),
    ([[97], [98, 99]], [[97], [98, 99]]), ("<|im_start|>", [[*b"<|im_start|>"]]),
])
def test_prompts_are_texts_or_ids_one_or_many(tokenizer, prompt, ids):
    engine = ScriptedEngine(lambda request: f"{list(request.prompt)}", end=END)
    answer = ask(tokenizer, prompt, engine=engine, max_tokens=60, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [f"{one}" for one in ids for _ in range(2)]
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(ids)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_control_tokens_are_parsed_in_a_prompt_if_asked(tokenizer):
    engine = ScriptedEngine("x", end=END)
    ask(tokenizer, "<|im_start|>a", engine=engine, parse_special=True)
    assert list(engine.requests[0].prompt) == [257, 97]


def test_the_events_of_a_stream_join_to_the_completion(tokenizer):
    engine = ScriptedEngine(lambda request: "Hello " + chr(request.prompt[0]), pace=0.002, end=END)
    *events, usage = ask(tokenizer, ["a", "b"], engine=engine, stream=True, n=2, stream_options={"include_usage": True})
    assert [text_of(events, index) for index in range(4)] == ["Hello a", "Hello a", "Hello b", "Hello b"]
    assert sum(choice["finish_reason"] == "stop" for event in events for choice in event["choices"]) == 4
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 2 + 4 * 8
    assert len({event["id"] for event in events}) == 1 and all(event["usage"] is None for event in events)


def test_the_prompt_stands_in_front_of_the_answer_if_asked(tokenizer):
    assert ask(tokenizer, ["ab", "c"], echo=True)["choices"][1]["text"] == "cHello!"
    assert ask(tokenizer, [97, 258], echo=True)["choices"][0]["text"] == "a<|im_end|>Hello!"
    assert text_of(ask(tokenizer, "ab", echo=True, stream=True)) == "abHello!"


def test_ids_come_with_a_completion_if_asked(tokenizer):
    choice = ask(tokenizer, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98, 99] and choice["token_ids"] == [*b"Hello!", END]
    engine = ScriptedEngine("Hello!", pace=0.003, end=END)
    choices = [event["choices"][0] for event in ask(tokenizer, engine=engine, stream=True, return_token_ids=True)]
    assert choices[0]["prompt_token_ids"] == [97, 98, 99]
    assert all("prompt_token_ids" not in choice for choice in choices[1:])
    assert [token for choice in choices for token in choice["token_ids"]] == [*b"Hello!", END]


# Log probabilities

def test_log_probabilities_have_the_form_of_completions(tokenizer):
    logprobs = ask(tokenizer, script="Hi", logprobs=2)["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["H", "i", "<|endoftext|>"], "token_logprobs": [-0.25] * 3, "text_offset": [0, 1, 2],
        "top_logprobs": [{"H": -0.25, "I": -1.0}, {"i": -0.25, "j": -1.0}, {"<|endoftext|>": -0.25, "\x01": -1.0}]}


def test_the_chosen_token_is_among_the_likeliest_that_are_told(tokenizer):
    assert ask(tokenizer, script="H", logprobs=0)["choices"][0]["logprobs"]["top_logprobs"][0] == {"H": -0.25}


def test_a_part_of_a_character_is_told_by_its_bytes(tokenizer):
    logprobs = ask(tokenizer, script="\u00e9!", logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!", "<|endoftext|>"]
    assert logprobs["text_offset"] == [0, 0, 1, 2]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
@pytest.mark.parametrize("stream", [False, True])
def test_how_likely_a_text_is_is_told_as_lm_eval_asks_for_it(tokenizer, prompt, stream):
    """local-completions of lm-evaluation-harness takes what stands before the last token."""
    engine = ScriptedEngine("H", end=END)
    answer = ask(tokenizer, [prompt], engine=engine, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234,
                 stream=stream)
    choice = answer[0]["choices"][0] if stream else answer["choices"][0]
    assert choice["text"] == "abcH"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "H"], "token_logprobs": [None, -0.25, -0.25, -0.25], "text_offset": [0, 1, 2, 3],
        "top_logprobs": [None, {"b": -0.25}, {"c": -0.25}, {"H": -0.25}]}
    assert (engine.requests[0].settings.prompt_logprobs, engine.requests[0].settings.draws) == (1, False)


def test_an_answer_that_ends_at_once_has_its_end_among_the_tokens(tokenizer):
    """lm-eval drops the last entry, which must not be the prompt's."""
    logprobs = ask(tokenizer, script="", max_tokens=1, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "<|endoftext|>"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_alone_is_scored_with_max_tokens_0(tokenizer, stream):
    answer = ask(tokenizer, max_tokens=0, logprobs=1, echo=True, stream=stream, return_token_ids=True,
                 **({"stream_options": {"include_usage": True}} if stream else {}))
    choice = answer[0]["choices"][0] if stream else answer["choices"][0]
    assert choice["text"] == "abc" and choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["finish_reason"] == "length" and choice["token_ids"] == []
    assert (answer[-1] if stream else answer)["usage"]["completion_tokens"] == 0


def test_prompts_are_scored_only_where_they_are_told(tokenizer):
    engine = ScriptedEngine("Hi", end=END)
    ask(tokenizer, engine=engine, logprobs=1)
    assert engine.requests[0].settings.prompt_logprobs is None
    assert ask(tokenizer, echo=True)["choices"][0]["logprobs"] is None


# Refused

@pytest.mark.parametrize("fields, param, said", [
    ({"prompt": []}, "prompt", "found an empty list"), ({"prompt": ""}, "prompt", "found nothing"),
    ({"prompt": [[]]}, "prompt", "found nothing"), ({"prompt": ["a", ""]}, "prompt", "found nothing"),
    ({"prompt": [600]}, "prompt", "expected ids from 0 to 511, found 600"),
    ({"prompt": [-1]}, "prompt", "expected ids from 0 to 511, found -1"),
    ({"prompt": [1, "a"]}, "prompt[1]", "should be a valid"), ({"prompt": None}, "prompt", "found None"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "expected an integer from 0 to 20, found 21"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "should be a valid integer, found True"),
    ({"prompt": "a", "best_of": 2}, "best_of", "expected n \\(1\\) or nothing, found 2"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not supported, expected '' or null, found 'b'"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "found 0"),
    ({"prompt": ["a"] * 100, "n": 2}, "prompt", "at most 128 answers in one request, found 100 prompts with 2 each"),
    ({"prompt": "a" * 512}, "prompt", "maximum context length is 512 tokens"),
    ({"prompt": "a", "messages": []}, "messages", "Unrecognized request argument: messages"),
])
def test_what_can_not_be_continued_is_refused_by_name(tokenizer, fields, param, said):
    with Api(tokenizer, ScriptedEngine("x")) as api:
        error = api.refused(**fields)
    assert error["param"] == param
    assert said.replace("\\", "") in error["message"]


def test_best_of_may_be_n(tokenizer):
    assert len(ask(tokenizer, n=2, best_of=2)["choices"]) == 2
