"""Whatever is given: an answer, or one line that names the key; see helpers/properties.py."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindformers import GenerationConfig

from helpers.properties import arguments, numbers, python_values, tell, texts, tried, values
from qwen_mindspore.generate.answers import prompt_of
from qwen_mindspore.generate.arguments import IGNORED, KNOWN, NEUTRAL, generation_arguments
from qwen_mindspore.generate.engine import Engine, Request
from qwen_mindspore.generate.sampling import next_token, penalize
from qwen_mindspore.generate.settings import ALLOWED, SAMPLING, GenerationSettings
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.text.chatml import ROLES
from qwen_mindspore.text.tokenizer import QwenTokenizer

MISSPELT = ("max_newtokens", "stop", "temprature")
ROOM = 64


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, batch_size=4, seq_length=ROOM, eos_token_id=256, pad_token_id=256)


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


@tried(300)
@given(arguments({*ALLOWED, *MISSPELT}))
def test_settings(given):
    try:
        settings = GenerationSettings().override(**given)
    except ValueError as error:
        return tell(error, given)
    assert hash(settings) == hash(settings.override()) and settings == GenerationSettings(**vars(settings))
    json.dumps(vars(settings), allow_nan=False)
    assert isinstance(settings.draws, bool) and settings.of_row(3).of_row(3) is not None


@tried(100)
@given(values(), arguments(ALLOWED, value=values()), arguments({*ALLOWED, "max_decode_length"}))
def test_settings_of_a_file_and_a_config(folder, whole, keys, config):
    for content in (whole, keys):
        (folder / "generation_config.json").write_text(json.dumps(content))
        try:
            GenerationSettings.load(SimpleNamespace(**config), folder)
        except ValueError as error:
            tell(error, [*config, "generation_config.json", "max_new_tokens"])


FLOATS = st.floats(width=32, allow_nan=True) | st.sampled_from([0.0, 1.0, 9.0, -9.0, np.inf, -np.inf, np.nan])


@tried(300)
@given(st.lists(FLOATS, min_size=1, max_size=200), arguments(SAMPLING, value=numbers()), st.booleans(),
       st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, 199), max_size=9))
def test_a_token_is_chosen_or_the_logits_are_not_finite(logits, given, do_sample, uniform, seen):
    try:
        settings = GenerationSettings(do_sample=do_sample, **given)
    except ValueError as error:
        return tell(error, given)
    logits = np.array(logits, np.float32)
    seen = np.array([token for token in seen if token < len(logits)], int)
    with np.errstate(all="ignore"):
        scores = penalize(logits.copy(), seen, settings.repetition_penalty)
    peak = scores.max()
    try:
        token = next_token(scores, settings, lambda: uniform, "row")
    except FloatingPointError as error:
        assert not np.isfinite(peak)
        return tell(error, ["row"])
    assert np.isfinite(peak) and 0 <= token < len(logits) and scores[token] > -np.inf
    if not settings.draws or settings.top_k == 1:
        assert scores[token] == peak
    return None


@tried(300)
@given(arguments({*KNOWN, *NEUTRAL, *IGNORED, *MISSPELT}), st.booleans())
def test_arguments(given, is_config):
    try:
        found = generation_arguments(QwenConfig(), None, given)
    except ValueError as error:
        return tell(error, given)
    assert type(found.settings.eos_token_id) is list and type(found.settings.do_sample) is bool
    assert found.sequences >= 1
    return None


IDS = st.integers(0, 300) | st.sampled_from([256, 511, 512, -1])
PROMPTS = python_values() | st.lists(IDS, max_size=6) | st.lists(st.lists(IDS, max_size=5), max_size=3) | st.lists(
    IDS, min_size=1, max_size=6).map(lambda row: np.array([row, row[::-1]]))


@tried(40)
@given(PROMPTS, arguments({*KNOWN, "seed"} - {"max_new_tokens", "max_length", "num_return_sequences"}),
       st.sampled_from([None, 0, 1, 3, 2.0, "2", True]), st.sampled_from([None, 1, 2]))
def test_generate(model, prompts, given, length, sequences):
    names = [*given, "prompt", "input_ids", "max_new_tokens", "num_return_sequences"]
    try:
        given = {**given, "max_new_tokens": length, "num_return_sequences": sequences}
        out = model.generate(prompts, GenerationConfig(max_length=8), **given)
    except (ValueError, FloatingPointError) as error:
        return tell(error, names)
    sequences = out if isinstance(out, list) else out.sequences
    assert all(ids.dtype == np.int32 and 0 < len(ids) <= ROOM for ids in sequences)
    return None


@tried(25)
@given(st.lists(st.tuples(python_values() | st.lists(IDS, max_size=9), arguments(
    {*ALLOWED} - {"eos_token_id", "max_new_tokens"}, value=numbers() | values())), max_size=4))
def test_the_engine(model, requests):
    engine, expected, ended = Engine(model, max_batch=2), set(), {}
    for number, (prompt, others) in enumerate(requests):
        try:
            settings = GenerationSettings(max_new_tokens=3).override(**others)
            expected.add(engine.add(Request(prompt, settings, number)))
        except ValueError as error:
            tell(error, [*others, "prompt"])
    for _ in range(100):
        ended |= {output.id: output for output in engine.step() if output.finish_reason}
        if not engine.has_work:
            break
    assert set(ended) == expected and engine.stats().free_blocks == engine.pool.count
    assert all(output.finish_reason in ("stop", "length") for output in ended.values())


MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(ROLES) | values(), "content": texts() | values() | st.lists(
    st.fixed_dictionaries({"type": st.just("text") | texts(), "text": texts()}), max_size=3)})


@tried(150)
@given(python_values() | st.lists(MESSAGE | python_values(), max_size=5), st.sampled_from(["raw", "chatml"]),
       st.booleans())
def test_messages(tokenizer, messages, chat_format, parse_special):
    config = SimpleNamespace(seq_length=ROOM, cache_blocks=ROOM, block_size=1)
    try:
        ids = prompt_of(messages, GenerationSettings(chat_format=chat_format), tokenizer, config, parse_special)
    except ValueError as error:
        return tell(error, ["message", "parse_special"])
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    return None
