"""Generation settings: where they come from, which source wins, and what is refused."""
import json
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig

CHAT_7B = {"chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_window_size": 6144,
           "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1,
           "transformers_version": "4.31.0"}


@pytest.fixture
def checkpoint(tmp_path):
    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "generation_config.json").write_text(text)
        return tmp_path
    return write


def test_the_defaults_are_greedy_with_nothing_switched_on():
    settings = GenerationSettings()
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (False, 1.0, 0, 1.0)
    assert (settings.max_new_tokens, settings.repetition_penalty, settings.seed) == (512, 1.0, None)
    assert (settings.stop_words_ids, settings.stop_words, settings.chat_format) == ((), (), "raw")


def test_lists_become_tuples_so_that_settings_compare_and_hash():
    settings = GenerationSettings(stop_words_ids=[[1], [2, 3]], stop_words=["Human:"])
    assert settings.stop_words_ids == ((1,), (2, 3)) and settings.stop_words == ("Human:",)
    assert hash(settings) == hash(GenerationSettings(stop_words_ids=((1,), (2, 3)), stop_words=("Human:",)))


REFUSED = [("temperature", -0.1), ("temperature", float("nan")),
           ("temperature", float("inf")), ("temperature", "hot"), ("temperature", 10 ** 400),
           ("top_p", 3), ("top_p", 0), ("top_p", True), ("top_k", -1), ("top_k", 2.5), ("repetition_penalty", -1.1),
           ("max_new_tokens", 0), ("max_new_tokens", 1.5), ("do_sample", "maybe"), ("do_sample", 2), ("seed", -1),
           ("seed", 2 ** 32), ("seed", 0.5), ("chat_format", "llama"), ("max_window_size", 0), ("stop_words", "Human:"),
           ("stop_words", ["a", ""]), ("stop_words", [7]), ("stop_words_ids", [7]), ("stop_words_ids", [[]]),
           ("stop_words_ids", [["a"]]), ("stop_words_ids", [[-1]]), ("stop_words_ids", 7)]


@pytest.mark.parametrize("name, value", REFUSED, ids=str)
def test_a_value_out_of_range_is_refused_by_name(name, value, checkpoint):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, found "):
        GenerationSettings(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        GenerationSettings().override(**{name: value})
    folder = checkpoint({name: value})
    with pytest.raises(ValueError, match=f"generation_config.json: {name}: expected "):
        GenerationSettings.load(SimpleNamespace(), folder)


def test_override_changes_what_is_given_and_none_is_not_given():
    settings = GenerationSettings(top_p=0.8, seed=7)
    assert settings.override(top_p=None, top_k=5) == GenerationSettings(top_p=0.8, top_k=5, seed=7)
    assert settings.override() == settings
    with pytest.raises(ValueError, match="topp: no such setting, expected one of max_new_tokens, .*top_p"):
        settings.override(topp=0.5)


def test_a_released_chat_model(checkpoint):
    settings = GenerationSettings.load(QwenConfig(), checkpoint(CHAT_7B))
    assert settings == GenerationSettings(do_sample=True, top_p=0.8, repetition_penalty=1.1, chat_format="chatml",
                                          stop_words_ids=((151643,),))


def test_the_file_wins_over_the_model_config_and_arguments_over_the_file(checkpoint):
    config = QwenConfig(do_sample=True, top_k=5, top_p=0.7, repetition_penalty=1.2, max_decode_length=100,
                        chat_format="chatml", eos_token_id=9)
    alone = GenerationSettings.load(config)
    assert alone == GenerationSettings(max_new_tokens=100, do_sample=True, top_k=5, top_p=0.7, repetition_penalty=1.2,
                                       chat_format="chatml", stop_words_ids=((9,),))
    folder = checkpoint({"top_k": 8, "top_p": 0.6, "eos_token_id": [3, 4], "seed": None})
    with_file = GenerationSettings.load(config, folder)
    assert with_file == alone.override(top_k=8, top_p=0.6, stop_words_ids=((3,), (4,)))
    with_arguments = GenerationSettings.load(config, folder, top_p=0.5, top_k=None, stop_words=["."])
    assert with_arguments == with_file.override(top_p=0.5, stop_words=["."])


def test_ids_that_end_a_sequence_count_as_stop_words_once(checkpoint):
    folder = checkpoint({"eos_token_id": 3, "stop_words_ids": [[3], [1, 2]]})
    assert GenerationSettings.load(QwenConfig(), folder).stop_words_ids == ((3,), (1, 2))
    assert GenerationSettings.load(QwenConfig(), folder, stop_words_ids=[[5]]).stop_words_ids == ((5,), (3,))
    assert GenerationSettings.load(QwenConfig(), folder, eos_token_id=[]).stop_words_ids == ((3,), (1, 2))
    assert GenerationSettings.load(QwenConfig(eos_token_id=-1)).stop_words_ids == (), "-1 stands for none"


def test_the_file_lies_beside_the_checkpoint_be_it_folder_or_file(checkpoint):
    folder = checkpoint({"top_k": 8})
    weights = folder / "qwen.ckpt"
    weights.touch()
    for place in (folder, str(folder), weights):
        assert GenerationSettings.load(QwenConfig(), place).top_k == 8
    assert GenerationSettings.load(QwenConfig(checkpoint_name_or_path=str(weights))).top_k == 8
    assert GenerationSettings.load(QwenConfig(), folder / "nowhere/qwen.ckpt").top_k == 0


@pytest.mark.parametrize("content, said", [("{", r"not valid JSON \(Expecting"), ("[1]", "expected a JSON object"),
                                           ('{"eos_token_id": "x"}', "eos_token_id: expected an id or a list of ids")])
def test_a_broken_file_is_named(checkpoint, content, said):
    with pytest.raises(ValueError, match=rf"generation_config.json: {said}"):
        GenerationSettings.load(QwenConfig(), checkpoint(content))


def test_an_argument_that_is_no_setting_is_refused():
    with pytest.raises(ValueError, match="beams: no such setting"):
        GenerationSettings.load(QwenConfig(), beams=4)


def test_a_chat_format_is_known_in_whatever_case_and_a_byte_order_mark_is_no_part_of_the_file(checkpoint):
    assert GenerationSettings(chat_format="ChatML").chat_format == "chatml"
    folder = checkpoint({})
    (folder / "generation_config.json").write_text('{"chat_format": "CHATML", "top_k": 3}', encoding="utf-8-sig")
    settings = GenerationSettings.load(QwenConfig(), folder)
    assert (settings.chat_format, settings.top_k) == ("chatml", 3)


TAKEN = [("temperature", "0.7", 0.7), ("top_p", " 1 ", 1.0), ("top_k", "5", 5), ("top_k", "5.0", 5),
         ("max_new_tokens", "64", 64), ("do_sample", "True", True), ("do_sample", "false", False), ("seed", "7", 7),
         ("do_sample", "no", False), ("do_sample", "OFF", False), ("do_sample", "yes", True), ("do_sample", "1", True),
         ("top_p", ".5", 0.5),
         ("repetition_penalty", "1.1", 1.1), ("stop_words_ids", "[[1], [2, 3]]", ((1,), (2, 3)))]


@pytest.mark.parametrize("name, text, value", TAKEN, ids=str)
def test_in_a_file_a_value_may_stand_in_quotes_and_nowhere_else(name, text, value, checkpoint):
    found = getattr(GenerationSettings.load(SimpleNamespace(), checkpoint({name: text})), name)
    assert found == value and type(found) is type(value)
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found '"):
        GenerationSettings(**{name: text})


@pytest.mark.parametrize("name, text", [("temperature", "hot"), ("top_k", "2.5"), ("do_sample", "maybe"), ("seed", ""),
                                        ("do_sample", "2"), ("top_k", "5_0"), ("top_k", "010"), ("seed", "0x1"),
                                        ("top_p", "NaN"), ("max_new_tokens", "true")])
def test_in_quotes_as_without_them_a_value_must_be_one(name, text, checkpoint):
    with pytest.raises(ValueError, match=f"generation_config.json: {name}: expected .*, found "):
        GenerationSettings.load(QwenConfig(), checkpoint({name: text}))


@pytest.mark.parametrize("value", ["no", "off", "0", 0, "yes", "On", "1", 1, "maybe", "2", 2, "none", "5_0", "y"])
def test_a_boolean_is_one_in_a_file_if_it_is_one_in_a_yaml(value, checkpoint):
    folder = checkpoint({"do_sample": value})
    try:
        meant = QwenConfig(do_sample=value).do_sample
    except ValueError:
        with pytest.raises(ValueError, match="generation_config.json: do_sample: expected True or False, found "):
            GenerationSettings.load(SimpleNamespace(), folder)
    else:
        assert GenerationSettings.load(SimpleNamespace(), folder).do_sample is meant


@pytest.mark.parametrize("value", ["5", "5.0", "+5", "5.", ".5e1", "1e1", " 7 ", "5_0", "0x5", "010", "5,0",
                                   "\u0665", "1 0", ""])
def test_a_number_is_one_in_a_file_if_it_is_one_in_a_yaml(value, checkpoint):
    folder = checkpoint({"top_k": value})
    try:
        meant = QwenConfig(top_k=value).top_k
    except ValueError:
        with pytest.raises(ValueError, match="generation_config.json: top_k: expected "):
            GenerationSettings.load(SimpleNamespace(), folder)
    else:
        assert GenerationSettings.load(SimpleNamespace(), folder).top_k == meant


def test_a_model_config_may_hold_text_as_yamls_do():
    config = SimpleNamespace(do_sample="True", temperature="0.5", top_k="3", max_decode_length="20", eos_token_id="9")
    assert GenerationSettings.load(config) == GenerationSettings(do_sample=True, temperature=0.5, top_k=3,
                                                                 max_new_tokens=20, stop_words_ids=((9,),))


@pytest.mark.parametrize("name, value, expected", [
    ("max_new_tokens", 2.0, 2), ("top_k", np.float32(5), 5), ("seed", np.int64(3), 3), ("temperature", 1, 1.0),
    ("top_p", np.float64(0.5), 0.5), ("temperature", Decimal("0.7"), 0.7), ("do_sample", np.bool_(True), True),
    ("stop_words_ids", np.array([[1, 2]]), ((1, 2),)), ("stop_words_ids", [[1.0]], ((1,),)),
])
def test_a_whole_number_may_be_a_float_and_numpys_numbers_are_numbers(name, value, expected):
    found = getattr(GenerationSettings(**{name: value}), name)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert all(type(token) is int for word in found for token in word)


def test_what_is_off_elsewhere_is_told_as_it_is_written_here():
    for name, value, advice in (("top_k", -1, "write 0 to switch it off"), ("top_p", 0, "write 1 to switch it off"),
                                ("top_p", -1.0, "write 1"), ("repetition_penalty", 0, "write 1 to switch it off"),
                                ("temperature", -1, "0 takes the likeliest token")):
        with pytest.raises(ValueError, match=f"^{name}: expected .*, found {value}[:,] .*{advice}"):
            GenerationSettings(**{name: value})


def test_a_temperature_of_0_is_greedy_wherever_it_comes_from(checkpoint):
    assert not GenerationSettings(temperature=0, do_sample=True).draws
    assert GenerationSettings(temperature=1e-300, do_sample=True).draws and not GenerationSettings().draws
    folder = checkpoint({"temperature": 0, "do_sample": True})
    assert not GenerationSettings.load(QwenConfig(), folder).draws
    assert GenerationSettings.load(QwenConfig(), folder, temperature=0.5).draws


@pytest.mark.parametrize("value, ends", [(9, [9]), ([9, 8], [9, 8]), ("9", [9]), ("[9, 8]", [9, 8]), (9.0, [9]),
                                         (-1, []), ([9, -1], [9]), ([], [])])
def test_an_eos_is_an_id_or_several_or_none(value, ends, checkpoint):
    settings = GenerationSettings.load(SimpleNamespace(), checkpoint({"eos_token_id": value}))
    assert settings.stop_words_ids == tuple((end,) for end in ends)


@pytest.mark.parametrize("value", [True, "<|endoftext|>", 1.5, -2, [[9]], [None], {"id": 9}])
def test_an_eos_that_is_no_id_is_refused_by_name(value, checkpoint):
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id: expected an id or a list of ids"):
        GenerationSettings.load(SimpleNamespace(), checkpoint({"eos_token_id": value}))


def test_rows_that_are_drawn_with_one_seed_differ_and_those_that_are_not_stay():
    drawn = GenerationSettings(do_sample=True, seed=5)
    assert drawn.of_row(1) == drawn.of_row(1) != drawn.of_row(2) and drawn.of_row(1).seed != 5
    assert GenerationSettings(seed=5).of_row(3) == GenerationSettings(seed=5)
    zero = drawn.override(temperature=0)
    assert zero.of_row(3) == zero


def test_a_setting_that_is_almost_one_is_told():
    with pytest.raises(ValueError, match=r"max_newtokens: no such setting, .* \(did you mean max_new_tokens\?\)"):
        GenerationSettings().override(max_newtokens=5)


def test_a_least_length_beyond_the_most_is_refused():
    with pytest.raises(ValueError, match=r"^min_new_tokens: expected at most max_new_tokens \(2\), found 3"):
        GenerationSettings(max_new_tokens=2, min_new_tokens=3)
    assert GenerationSettings(max_new_tokens=2, min_new_tokens=2).min_new_tokens == 2
