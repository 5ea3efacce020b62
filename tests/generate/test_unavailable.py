"""What a generation_config.json asks for and there is not: said once, and never of those that Qwen's models have."""
import json

import pytest

from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.generate.unavailable import NEUTRAL
from qwen_mindspore.model.config import QwenConfig

# As they stand beside the released weights.
RELEASED = {
    "Qwen-7B": {"chat_format": "raw", "do_sample": True, "eos_token_id": 151643, "max_new_tokens": 512,
                "pad_token_id": 151643, "stop_words_ids": [[151643]], "top_k": 0, "top_p": 0.8,
                "transformers_version": "4.31.0"},
    "Qwen-7B-Chat": {"chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_window_size": 6144,
                     "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1,
                     "transformers_version": "4.31.0"},
    "Qwen1.5-7B-Chat": {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True,
                        "eos_token_id": [151645, 151643], "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8,
                        "top_k": 20, "transformers_version": "4.37.0"},
    "by save_pretrained": {"_from_model_config": True, "max_length": 20, "num_beams": 1, "num_beam_groups": 1,
                           "typical_p": 1.0, "length_penalty": 1.0, "early_stopping": False, "use_cache": True,
                           "output_attentions": True, "num_assistant_tokens": 5, "penalty_alpha": None},
}


@pytest.fixture
def load(tmp_path):
    def load(content):
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        return GenerationSettings.load(QwenConfig(), tmp_path)
    return load


@pytest.mark.parametrize("content", RELEASED.values(), ids=RELEASED)
def test_nothing_is_said_of_what_the_models_have(load, capfd, content):
    load(content)
    assert capfd.readouterr() == ("", "")


ASKED = [("num_beams", 3), ("num_return_sequences", 3), ("penalty_alpha", 0.6), ("typical_p", 0.5), ("num_beams", "3"),
         ("no_repeat_ngram_size", 2), ("bad_words_ids", [[1]]), ("guidance_scale", 1.5), ("early_stopping", True),
         ("stop_strings", ["a"]), ("min_length", 5), ("max_length", 4096), ("forced_eos_token_id", 5),
         ("sequence_bias", [[[1], -10.0]]), ("early_stopping", "never"), ("typical_p", "half")]


@pytest.mark.parametrize("name, value", ASKED, ids=str)
def test_what_there_is_not_is_said_once_by_name(load, tmp_path, capfd, name, value):
    for _ in range(3):
        assert load({"top_k": 5, name: value}).top_k == 5
    out, said = capfd.readouterr()
    assert out == "" and said.count("\n") == 1
    file = tmp_path / "generation_config.json"
    assert said.startswith(f"qwen-mindspore: {file}: answers are generated without {name}: not implemented")


def test_all_of_them_are_on_one_line(load, capfd):
    load({"num_beams": 4, "top_p": 0.5, "diversity_penalty": 0.3, "num_beam_groups": 2})
    assert "without num_beams, diversity_penalty, num_beam_groups: not implemented\n" in capfd.readouterr().err


def test_a_value_by_which_nothing_is_asked_for_may_stand_in_quotes(load, capfd):
    load({"num_beams": "1", "typical_p": "1.0", "early_stopping": "false", "penalty_alpha": "none", "min_length": "0"})
    load({name: values[0] for name, values in NEUTRAL.items() if values})
    load({"max_length": 4096, "max_new_tokens": 512})
    assert capfd.readouterr().err == "", "of two lengths that of the answer counts, as in transformers"
