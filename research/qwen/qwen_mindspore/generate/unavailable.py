"""What other programs' settings of generation ask for and this one has not: refused in a call, told of in a file."""
import functools
from numbers import Real

import numpy as np

from qwen_mindspore.common.kinds import as_number
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import shown

__all__ = ["NEUTRAL", "is_neutral", "refuse", "tell_of_unavailable"]

# Settings that there are elsewhere, with the values by which nothing is asked for; None is one for each.
NEUTRAL = {
    "num_beams": (1,), "num_beam_groups": (1,), "encoder_repetition_penalty": (1,), "parallel_decoding": (False,),
    "typical_p": (1,), "min_p": (0,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_a": (0,),
    "penalty_alpha": (0,), "diversity_penalty": (0,), "length_penalty": (0, 1), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "early_stopping": (False,), "constraints": ([],), "bad_words_ids": ([],), "force_words_ids": ([],),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "stop_strings": ([],), "stopping_criteria": ([],), "prefix_allowed_tokens_fn": (), "assistant_model": (),
    "prompt_lookup_num_tokens": (0,), "guidance_scale": (1,), "max_time": (), "output_attentions": (False,),
    "output_hidden_states": (False,), "inputs_embeds": (), "num_assistant_tokens": (),
}
# Those that a call of `generate` takes; the commands that read a generation_config.json have no such thing.
OF_CALLS = {"num_return_sequences": (1,), "min_length": (0,), "min_new_tokens": (0,)}
# What no answer depends on, though transformers writes it with other values than the neutral ones.
WITHOUT_EFFECT = ("output_attentions", "output_hidden_states", "num_assistant_tokens")
DEFAULT_LENGTH = 20  # max_length in transformers' files where nobody has said anything


def is_neutral(value, neutral):
    """Whether by a value nothing is asked for, one of the `neutral` ones or None."""
    return value is None or any(_equal(value, other) for other in neutral)


def refuse(name, value, neutral, advice=""):
    """ValueError for a setting that is given and that there is not."""
    if not is_neutral(value, neutral):
        raise ValueError(f"{name}: not implemented, expected {' or '.join(map(str, (*neutral, None)))}, found "
                         f"{shown(value)}{advice}")


def tell_of_unavailable(path, content, known):
    """
    Say on standard error, once a file, what a generation_config.json asks for and no answer will have.

    Args:
        path (Path): The file.
        content (dict): What it says.
        known (Container[str]): Settings that there are.
    """
    table = {**NEUTRAL, **OF_CALLS}
    names = [name for name, value in content.items() if name in table and name not in (*known, *WITHOUT_EFFECT)
             and not is_neutral(_unquoted(value), table[name])]
    # The length of prompt and answer together, which gives way to that of the answer.
    if content.get("max_new_tokens") is None and not is_neutral(_unquoted(content.get("max_length")),
                                                                (DEFAULT_LENGTH,)):
        names.append("max_length")
    if names:
        _say_once(f"{path}: answers are generated without {', '.join(names)}: not implemented"
                  + "; the length of an answer is max_new_tokens" * ("max_length" in names))


def _unquoted(value):
    """The number or boolean that a text in a file stands for."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in ("true", "false", "null", "none", ""):
        return {"true": True, "false": False}.get(word)
    try:
        return as_number(word)
    except ValueError:
        return value


@functools.cache
def _say_once(text):
    say("qwen-mindspore", text)


def _equal(value, neutral):
    if isinstance(neutral, (list, dict)):
        return isinstance(value, (list, tuple, dict)) and not value
    if isinstance(neutral, bool):
        return isinstance(value, (bool, np.bool_)) and value == neutral
    return isinstance(value, Real) and not isinstance(value, bool) and value == neutral
