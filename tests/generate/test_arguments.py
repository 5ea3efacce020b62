"""The arguments of `generate`: what MindFormers' and transformers' users give, and how batches are padded."""
import json

import numpy as np
import pytest
from mindformers import GenerationConfig
from mindspore import Tensor

from helpers import TINY
from qwen_mindspore.generate.arguments import NEUTRAL, check_helpers, generation_arguments, prompts_of
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig

GREEDY = json.loads((TINY / "greedy.json").read_text())
PAD = EOD = 256


def arguments(generation_config=None, config=None, **given):
    return generation_arguments(config or QwenConfig(), generation_config, given)


# Names

@pytest.mark.parametrize("name, value, near", [
    ("max_newtokens", 3, "max_new_tokens"), ("stop_word_ids", [[1]], "stop_words_ids"), ("topk", 1, "top_k"),
    ("do_samples", True, "do_sample"), ("temprature", 1, "temperature"), ("eos_token_ids", 1, "eos_token_id"),
    ("attention_masks", [[1]], "attention_mask"), ("numreturn_sequences", 2, "num_return_sequences")])
def test_a_name_that_is_none_is_refused_with_the_near_spelling(name, value, near):
    for given in ({name: value}, {"generation_config": GenerationConfig(**{name: value})}):
        with pytest.raises(ValueError, match=rf"^{name}: generate has no such argument \(did you mean {near}\?\)$"):
            arguments(**given)


def test_a_name_that_is_like_none_is_refused():
    with pytest.raises(ValueError, match="^whatever: generate has no such argument$"):
        arguments(whatever=None)


@pytest.mark.parametrize("name, value", [
    ("num_beams", 3), ("penalty_alpha", 0.6), ("no_repeat_ngram_size", 2), ("bad_words_ids", [[1]]), ("min_p", 0.1),
    ("typical_p", 0.5), ("encoder_repetition_penalty", 1.2), ("stop_strings", ["a"]), ("num_beams", True),
    ("forced_eos_token_id", 3), ("guidance_scale", 2), ("output_attentions", True), ("max_time", 3.0)])
def test_what_is_not_implemented_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: not implemented, expected .*None, found "):
        arguments(**{name: value})


def test_what_asks_for_nothing_is_taken():
    for name, values in NEUTRAL.items():
        for value in (*values, None):
            arguments(**{name: value})
    arguments(use_cache=True, use_past=False, bos_token_id=1, do_sample=None, max_length=None, max_new_tokens=None,
              num_return_sequences=None, stop_words_ids=None, return_dict_in_generate=None, chat_format="chatml",
              audio_processor=None, image_processor=None, is_full_config=True, batch_size=1, max_window_size=6144,
              transformers_version="4.31.0", synced_gpus=False, num_beams=np.int64(1))
    arguments(GenerationConfig(num_beams=1, use_past=True))


def test_the_released_generation_config_is_taken(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({
        "chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_window_size": 6144,
        "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1,
        "transformers_version": "4.31.0"}))
    settings = arguments(GenerationConfig.from_pretrained(str(tmp_path))).settings
    assert (settings.do_sample, settings.top_p, settings.eos_token_id, settings.max_new_tokens) == (
        True, 0.8, [151643], 512)


@pytest.mark.parametrize("given", [{"top_p": 0.5}, GenerationSettings(), "greedy"])
def test_what_is_no_generation_config_is_refused(given):
    with pytest.raises(ValueError, match="^generation_config: expected a GenerationConfig of MindFormers, found "):
        generation_arguments(QwenConfig(), given, {})


# Values

@pytest.mark.parametrize("value, ids", [(9, [9]), ([9, 8], [9, 8]), ((9,), [9]), (None, []), (-1, []), ([], []),
                                        ([9, -1], [9]), (np.int64(9), [9]), ("49158", [49158])])
def test_an_eos_is_an_id_or_several_or_none(value, ids):
    assert arguments(eos_token_id=value).settings.eos_token_id == ids
    assert arguments(eos_token_id=[9, 2 ** 40]).settings.eos_token_id == [9], "beyond the vocabulary"
    assert arguments(GenerationConfig(eos_token_id=value)).settings.eos_token_id == ids


@pytest.mark.parametrize("name, value", [
    ("max_new_tokens", 0), ("max_new_tokens", True), ("max_length", -1), ("max_length", "long"), ("min_length", -1),
    ("min_new_tokens", 0.5), ("pad_token_id", -3), ("num_return_sequences", 0), ("num_return_sequences", "two"),
    ("eos_token_id", "<|endoftext|>"), ("eos_token_id", [[1]]), ("stop_words_ids", [1]), ("stop_words_ids", [[]]),
    ("stop_words_ids", "Human:"), ("do_sample", 1), ("output_scores", "yes"), ("top_k", True), ("top_k", 1.5)])
def test_a_value_that_can_not_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found "):
        arguments(**{name: value})


def test_values_have_one_type_whoever_gives_them():
    settings = arguments(max_new_tokens=2.0, top_k=np.int32(5), temperature=np.float32(0.5), do_sample=np.True_,
                         max_length="30").settings
    assert (settings.max_new_tokens, settings.top_k, settings.temperature, settings.do_sample, settings.max_length) == (
        2, 5, 0.5, True, 30)
    assert [type(value) for value in (settings.max_new_tokens, settings.top_k, settings.do_sample)] == [int, int, bool]


def test_none_switches_off_what_can_be_off_and_is_not_given_else():
    given = GenerationConfig(top_k=3, top_p=0.5, temperature=0.7, repetition_penalty=1.2, eos_token_id=4,
                             pad_token_id=5, do_sample=True, max_length=33, max_new_tokens=7)
    settings = arguments(given, **dict.fromkeys(("top_k", "top_p", "temperature", "repetition_penalty", "eos_token_id",
                                                 "pad_token_id", "do_sample", "max_length", "max_new_tokens"))).settings
    assert (settings.top_k, settings.top_p, settings.temperature, settings.repetition_penalty) == (None,) * 4
    assert (settings.eos_token_id, settings.pad_token_id) == ([], None)
    assert (settings.do_sample, settings.max_length, settings.max_new_tokens) == (True, 33, 7)
    assert given.top_k == 3, "what the caller has stays as it is"


def test_several_sequences_without_drawing_would_be_the_same():
    for given in ({}, {"do_sample": False}, {"do_sample": True, "temperature": 0}):
        with pytest.raises(ValueError, match="num_return_sequences: 3 answers to a prompt would all be the same"):
            arguments(num_return_sequences=3, **given)
    assert arguments(num_return_sequences=1).sequences == 1
    assert arguments(num_return_sequences=3, do_sample=True).sequences == 3


# Padding

def prompts(ids, mask=None, pad=PAD, ends=(EOD,)):
    return [prompt.tolist() for prompt in prompts_of(ids, mask, pad, ends)]


@pytest.mark.parametrize("ids, expected", [
    ([1, 2, EOD], [[1, 2, EOD]]), ([[1, 2, EOD]], [[1, 2, EOD]]), ([[EOD]], [[EOD]]), ([EOD], [[EOD]]),
    ([[1, EOD], [2]], [[1, EOD], [2]]), ([[EOD, EOD], [2]], [[EOD, EOD], [2]]),
    ([[1, 2, 3], [4, PAD, PAD]], [[1, 2, 3], [4]]),
    ([[1, 2, EOD], [3, 4, EOD]], [[1, 2, EOD], [3, 4, EOD]]),
    ([[1, 2, EOD], [3, EOD, PAD]], [[1, 2, EOD], [3, EOD]]),
    ([1, 2, PAD, PAD, PAD], [[1, 2]]), ([[EOD, EOD]], [[EOD]]),
    ([[1, 2, PAD, PAD], [3, PAD, PAD, PAD]], [[1, 2], [3]]),
    ([[1, 2], [PAD, PAD]], [[1, 2], [PAD]]), ([[EOD], [EOD]], [[EOD], [EOD]]),
])
def test_lists_of_one_length_are_stripped_of_what_must_be_padding_and_of_nothing_else(ids, expected):
    assert prompts(ids) == expected


@pytest.mark.parametrize("make", [np.array, lambda ids: Tensor(np.array(ids, np.int32)),
                                  lambda ids: np.array(ids, np.int16)])
def test_an_array_is_stripped_at_the_right_but_never_to_nothing(make):
    assert prompts(make([[1, 2, PAD], [3, PAD, PAD], [PAD, 4, PAD], [PAD, PAD, PAD]])) == [[1, 2], [3], [PAD, 4], [PAD]]
    assert prompts(make([[1, PAD]])) == [[1]] and prompts(make([PAD])) == [[PAD]] == prompts(make([[PAD]]))
    assert prompts(make([[1, PAD]]), pad=None) == [[1, PAD]]


def test_a_mask_says_what_is_the_prompt_and_nothing_else_does():
    ids, mask = [[PAD, PAD, 1], [2, EOD, PAD]], [[0, 1, 1], [1, 1, 0]]
    for kind in (list, np.array, lambda rows: Tensor(np.array(rows))):
        assert prompts(kind(ids), kind(mask)) == [[PAD, 1], [2, EOD]]
    assert prompts([1, 2], [1, 0]) == [[1]]
    for wrong in ([[1, 1]], [[1], [1, 1]], "11", [[1, 1, 1]] * 3, [[0, 1, 2], [1, 1, 0]], [[0, 1, np.nan], [1, 1, 0]]):
        with pytest.raises(ValueError, match="^attention_mask: expected "):
            prompts(ids, wrong)
    with pytest.raises(ValueError, match="^attention_mask: expected "):
        prompts([[1, 2], [3]], [[1, 1], [1, 0]])


@pytest.mark.parametrize("ids", ["hello", b"hello", {"input_ids": [[1]]}, 7, None, 1.5, {1, 2}])
def test_what_is_no_list_of_ids_is_refused(ids):
    with pytest.raises(ValueError, match="^(input_ids|prompt 0): expected "):
        prompts(ids)


# Answers

@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, batch_size=4, eos_token_id=EOD, pad_token_id=PAD)


def answer(model, prompt, **settings):
    return model.generate(prompt, **{"do_sample": False, "max_new_tokens": 6, "eos_token_id": [], **settings})


def test_a_prompt_that_ends_with_the_end_of_a_text_is_answered_as_it_is(model):
    """As the released Qwens have it: padding is the end of a text."""
    prompt = [*GREEDY["prompts"][0], EOD]
    expected = answer(model, prompt, pad_token_id=511)[0].tolist()
    assert expected[:len(prompt)] == prompt
    assert answer(model, prompt)[0].tolist() == answer(model, [prompt])[0].tolist() == expected
    alone = answer(model, [[EOD]])[0].tolist()
    assert alone[0] == EOD and len(alone) == 7 and alone == answer(model, np.array([[EOD, PAD]]))[0].tolist()


def test_stop_words_of_ids_end_an_answer_and_stay_its_end(model):
    prompt, expected = GREEDY["prompts"][1], GREEDY["greedy"][1]
    word = expected[3:5]
    assert answer(model, prompt, stop_words_ids=[word, [511, 9]], max_new_tokens=20)[0][len(prompt):].tolist() == \
        expected[:5]
    begun = [[prompt[-1], expected[0]]]
    assert len(answer(model, prompt, stop_words_ids=begun)[0]) == len(prompt) + 6, "a prompt begins no stop word"
    config = GenerationConfig(stop_words_ids=[word], do_sample=False, max_new_tokens=20)
    assert model.generate(prompt, config)[0][len(prompt):].tolist() == expected[:5]


def test_several_sequences_of_a_prompt_are_drawn_one_by_one(model):
    out = model.generate([[1, 2, 3], [4]], do_sample=True, top_k=0, num_return_sequences=2, max_new_tokens=8, seed=1,
                         eos_token_id=None)
    assert [ids[:len(prompt)].tolist() for ids, prompt in zip(out, ([1, 2, 3], [1, 2, 3], [4], [4]))] == [
        [1, 2, 3], [1, 2, 3], [4], [4]]
    assert out[0].tolist() != out[1].tolist() and out[2].tolist() != out[3].tolist()


def test_a_temperature_of_0_is_greedy(model):
    prompt = GREEDY["prompts"][1]
    out = model.generate(prompt, do_sample=True, temperature=0, max_new_tokens=6, eos_token_id=-1)
    assert out[0][len(prompt):].tolist() == GREEDY["greedy"][1][:6]


def test_numbers_at_the_ends_of_their_range_are_answered(model):
    greedy = answer(model, [1, 2, 3])[0].tolist()
    for given in ({"temperature": 1e-40}, {"top_p": 1e-30}, {"top_k": 1}, {"temperature": 5e-324, "top_k": 3}):
        assert answer(model, [1, 2, 3], do_sample=True, **given)[0].tolist() == greedy
    for penalty in (1e-40, 5e-324, 1e300):
        assert len(answer(model, [1, 2, 3], repetition_penalty=penalty)[0]) == 9
    repeated = answer(model, [1, 2, 3], repetition_penalty=1e-40)[0][3:].tolist()
    assert set(repeated) <= {1, 2, 3} | set(greedy)


@pytest.mark.parametrize("none", [None, -1, "-1"])
def test_there_may_be_no_padding(none):
    assert generation_arguments(QwenConfig(pad_token_id=none), None, {}).settings.pad_token_id is None
    assert generation_arguments(QwenConfig(), None, {"pad_token_id": none}).settings.pad_token_id is None


# What is called

@pytest.mark.parametrize("given, said", [
    ({"streamer": 3}, "streamer: expected an object with put and end, found 3"), ({"streamer": print}, "streamer: "),
    ({"logits_processor": 3}, "logits_processor: expected a list of functions of ids and logits, found 3"),
    ({"logits_processor": [3]}, "logits_processor: "), ({"logits_processor": len}, "logits_processor: ")])
def test_what_can_not_be_called_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        check_helpers(**{"streamer": None, "logits_processor": None, **given})


def test_a_plain_list_of_functions_is_taken_as_well():
    check_helpers([lambda ids, logits: logits], None)
    check_helpers(None, None)


def test_a_least_length_beyond_the_most_is_refused():
    with pytest.raises(ValueError, match=r"^min_new_tokens: expected at most max_new_tokens \(2\), found 5"):
        generation_arguments(QwenConfig(), None, {"min_new_tokens": 5, "max_new_tokens": 2})


@pytest.mark.parametrize("prompts", [[[5, [6]]], [5, [6]], [[[5]]]])
def test_lists_within_a_prompt_are_no_ids(prompts):
    with pytest.raises(ValueError, match="^prompt 0: expected a list of ids"):
        prompts_of(prompts, None, None, ())
