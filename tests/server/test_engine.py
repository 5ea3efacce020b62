"""The interface over the engine itself and the golden model: the answers are the reference's, whoever else asks."""
import asyncio
import json

import numpy as np
import pytest

from helpers import TINY
from helpers.api import Api, events_of
from qwen_mindspore.generate.engine import Engine

GREEDY = json.loads((TINY / "greedy.json").read_text())
CASES = list(zip(GREEDY["prompts"], GREEDY["greedy"]))


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, seq_length=256, block_size=8, num_blocks=120)


@pytest.fixture
def api(model, tokenizer):
    engine = Engine(model, max_batch=4)
    with Api(tokenizer, engine) as api:
        yield api
    assert not engine.sequences and engine.pool.free == engine.pool.count


def body_of(case, **fields):
    prompt, expected = case
    return {"prompt": prompt, "max_tokens": len(expected), "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **fields}


def ids_of(response, stream):
    assert response.status_code == 200, response.text
    if not stream:
        return response.json()["choices"][0]["token_ids"]
    return [token for event in events_of(response.text) for token in event["choices"][0]["token_ids"]]


@pytest.mark.parametrize("stream", [False, True])
def test_greedy_answers_are_the_references(api, stream):
    for case in CASES:
        assert ids_of(api.post("/v1/completions", body_of(case, stream=stream)), stream) == case[1]


def test_answers_are_the_same_among_others_that_come_go_and_hang_up(api):
    async def other(number):
        await asyncio.sleep(0.02 * number)
        body = {"prompt": [number + 5, 17, number], "max_tokens": 60, "temperature": 1.2, "seed": number,
                "stream": number % 2 == 0, "ignore_eos": True}
        request = asyncio.ensure_future(api.client.post("/v1/completions", json=body))
        if number % 3 == 0:
            await asyncio.sleep(0.05)
            request.cancel()
        return await asyncio.gather(request, return_exceptions=True)

    async def asked(number, case):
        await asyncio.sleep(0.07 * number)
        response = await api.client.post("/v1/completions", json=body_of(case, stream=number % 2 == 1))
        return ids_of(response, number % 2 == 1)

    async def all_at_once():
        others = [asyncio.ensure_future(other(number)) for number in range(16)]
        answers = await asyncio.gather(*(asked(number, case) for number, case in enumerate(CASES)))
        await asyncio.gather(*others)
        return answers

    assert api.run(all_at_once()) == [expected for _, expected in CASES]


def test_a_seed_draws_the_same_and_n_draw_as_one_by_one(api):
    fields = {"prompt": [5, 17, 3], "temperature": 1.0, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}

    def drawn(**others):
        answer = api.post("/v1/completions", {**fields, **others}).json()
        return [choice["token_ids"] for choice in answer["choices"]]

    assert drawn(seed=-3, n=3) == [drawn(seed=seed)[0] for seed in (-3, -2, -1)]
    assert drawn(seed=8) == drawn(seed=8) != drawn(seed=9)


def test_how_likely_a_text_is_is_what_the_reference_says(api):
    reference = np.load(TINY / "forward.npz")
    ids, logits = reference["input_ids"][0].tolist(), reference["logits"][0].astype(np.float64)
    answer = api.complete(ids, max_tokens=1, logprobs=1, echo=True, temperature=0)
    logprobs = answer["choices"][0]["logprobs"]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert logprobs["token_logprobs"][0] is None and len(logprobs["tokens"]) == len(ids) + 1
    for place, token in enumerate(ids[1:]):
        assert logprobs["token_logprobs"][place + 1] == pytest.approx(expected[place, token], abs=1e-4)
        assert max(logprobs["top_logprobs"][place + 1].values()) == pytest.approx(expected[place].max(), abs=1e-4)
    best = logits[-1].argmax()
    assert logprobs["token_logprobs"][-1] == pytest.approx(expected[-1, best], abs=1e-4)


def test_what_was_computed_before_is_told(api):
    prompt = list(range(40, 80))
    assert api.complete(prompt, max_tokens=2)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert api.complete(prompt, max_tokens=2)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
