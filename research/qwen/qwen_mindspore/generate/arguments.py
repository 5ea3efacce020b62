"""The arguments of `generate`: what MindFormers, transformers and the original Qwen know, taken, or refused by name."""
import copy
import math
from typing import NamedTuple

import numpy as np
from mindformers.generation.generation_config import GenerationConfig

from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.common.text import nearest, shown
from qwen_mindspore.generate.sampling import as_ids
from qwen_mindspore.generate.settings import (
    ALLOWED,
    BOOLEAN,
    FROM_0,
    FROM_1,
    FROM_NO_TOKEN,
    SAMPLING,
    from_text,
)
from qwen_mindspore.generate.unavailable import NEUTRAL, refuse

__all__ = ["Arguments", "check_helpers", "generation_arguments", "prompts_of"]

# What `generate` looks at.
KNOWN = {
    **SAMPLING, **{name: ALLOWED[name] for name in ("do_sample", "max_new_tokens", "eos_token_id", "stop_words_ids")},
    "max_length": FROM_1, "num_return_sequences": FROM_1,
    **dict.fromkeys(("min_length", "min_new_tokens"), FROM_0), "pad_token_id": FROM_NO_TOKEN,
    **dict.fromkeys(("renormalize_logits", "return_dict_in_generate", "output_scores", "output_logits"), BOOLEAN),
}
NO_TOKEN = -1
DEFAULT_LENGTH = 20  # of prompt and answer, as MindFormers has it
SWITCHED_OFF = (*SAMPLING, "eos_token_id", "pad_token_id")  # by None; to others None means: not given
# What no answer depends on: any value does.
IGNORED = {"use_past", "use_cache", "bos_token_id", "decoder_start_token_id", "window_size", "level", "guess_set_size",
           "remove_invalid_values", "synced_gpus", "low_memory", "return_legacy_result", "cache_implementation",
           "tokenizer", "trust_remote_code", "transformers_version", "chat_format", "max_window_size",
           "dynamic_padding_size", "sampler_backend",
           # What MindFormers' Trainer and pipeline hand on to whatever model.
           "audio_processor", "image_processor", "is_full_config", "batch_size", "model_name", "backend", "framework"}


class Arguments(NamedTuple):
    """What a call of `generate` asks for."""

    settings: GenerationConfig  # with `eos_token_id` as a list, flags as booleans, lengths as integers
    stop_words_ids: tuple  # of tuples of ids
    sequences: int  # answers to each prompt


def generation_arguments(config, generation_config, arguments):
    """
    The settings of a call of `generate`.

    Args:
        config (QwenConfig): The model's, by which the settings are where no `generation_config` is given.
        generation_config (GenerationConfig | None): As the call has it; stays as it is.
        arguments (dict): What the call gives besides. None: as the generation_config says, but for what None switches
            off: temperature, top_k, top_p, repetition_penalty, eos_token_id and pad_token_id.

    Returns:
        Arguments.

    Raises:
        ValueError: An argument or an attribute of the generation_config that there is not, the message says the near
            spelling; a value that can't be, or that asks for what there is not.
    """
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        raise ValueError("generation_config: expected a GenerationConfig of MindFormers, found "
                         f"{type(generation_config).__name__}; give its values as arguments")
    settings = copy.deepcopy(generation_config or GenerationConfig.from_model_config(config))
    values = {name: value for name, value in vars(settings).items() if not name.startswith("_")}
    for name, value in (*values.items(), *arguments.items()):
        _check_known(name, value)
    values |= {name: value for name, value in arguments.items() if value is not None or name in SWITCHED_OFF}
    for name, kind in KNOWN.items():
        value = values.get(name)
        if name == "pad_token_id" and from_text(name, value) == NO_TOKEN:  # as a config says that there is none
            value = None
        if value is not None:
            value = read_as(kind, name, from_text(name, value))
        setattr(settings, name, bool(value) if kind is BOOLEAN else value)
    if (settings.min_new_tokens or 0) > (settings.max_new_tokens or math.inf):
        raise ValueError(f"min_new_tokens: expected at most max_new_tokens ({settings.max_new_tokens}), found "
                         f"{settings.min_new_tokens}")
    settings.max_length = settings.max_length or DEFAULT_LENGTH
    # An end beyond the vocabulary never comes.
    settings.eos_token_id = [token for token in settings.eos_token_id or () if token < config.vocab_size]
    sequences = settings.num_return_sequences or 1
    if sequences > 1 and not (settings.do_sample and settings.temperature != 0):
        raise ValueError(f"num_return_sequences: {sequences} answers to a prompt would all be the same without "
                         "do_sample: set do_sample to True, and a temperature above 0")
    return Arguments(settings, settings.stop_words_ids or (), sequences)


def check_helpers(logits_processor, streamer):
    """ValueError where what a call gives to be called can't be."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise ValueError(f"streamer: expected an object with put and end, found {shown(streamer)}")
    is_list = isinstance(logits_processor, (list, tuple)) and all(map(callable, logits_processor))
    if logits_processor is not None and not is_list:
        raise ValueError(f"logits_processor: expected a list of functions of ids and logits, found "
                         f"{shown(logits_processor)}")


def _check_known(name, value):
    """ValueError for an argument that there is not, or that asks for what there is not."""
    if name in IGNORED or name in KNOWN:
        return
    if name not in NEUTRAL:
        known = [*KNOWN, "seed", "attention_mask", "streamer", "logits_processor", "generation_config"]
        raise ValueError(f"{name}: generate has no such argument{nearest(name, known)}")
    refuse(name, value, NEUTRAL[name],
           ": give the ids as stop_words_ids" if name in ("stop_strings", "stopping_criteria") else "")


def prompts_of(input_ids, attention_mask, pad, ends):
    """
    The prompts of a call as int64 arrays, without padding.

    Lists that differ in length carry none. Rows of one length may have padding on the right: those of an array, and
    lists, be it only one, as a tokenizer gives them with padding="max_length". Where padding is also the end of a text,
    as with the released Qwens, lists keep a single end that all of them have: who pads to the longest adds none to it,
    who pads to a fixed length more. What is nothing but padding keeps one of it.

    Args:
        input_ids: One list of ids, or a batch; or an array or a Tensor of them.
        attention_mask: [B, S] of 0 and 1, where the ids are the prompt's; nothing else is looked at then.
        pad (int | None): The id of padding.
        ends (Container[int]): Ids that end a text.

    Raises:
        ValueError: What is no list of ids.
    """
    is_array = hasattr(input_ids, "shape")
    if not is_array and not isinstance(input_ids, (list, tuple)):
        advice = ": give its input_ids" if hasattr(input_ids, "keys") else ""
        raise ValueError(f"input_ids: expected a list of ids or lists of them, found {shown(input_ids)}{advice}")
    if is_array:
        input_ids = input_ids.asnumpy() if hasattr(input_ids, "asnumpy") else np.asarray(input_ids)
        if input_ids.ndim == 0:
            raise ValueError(f"input_ids: expected a list of ids or lists of them, found {shown(input_ids)}")
    if len(input_ids) == 0 or not (hasattr(input_ids[0], "__len__") or np.ndim(input_ids[0])):
        input_ids = [input_ids]
    rows = [as_ids(row, f"prompt {number}") for number, row in enumerate(input_ids)]
    if attention_mask is not None:
        return _masked(rows, attention_mask)
    if pad is None or len({len(row) for row in rows}) > 1:
        return rows
    padding = [len(row) - int(np.max(np.argwhere(row != pad), initial=-1)) - 1 for row in rows]
    is_end = pad in ends
    common = 1 if is_end and not is_array and min(padding) == 1 else 0
    least = 1 if is_end or is_array else 0
    return [row[:max(len(row) - count + common, min(least, len(row)))] for row, count in zip(rows, padding)]


def _masked(rows, attention_mask):
    shape = len(rows), len(rows[0])
    if hasattr(attention_mask, "asnumpy"):
        attention_mask = attention_mask.asnumpy()
    try:
        mask = np.atleast_2d(np.asarray(attention_mask))
        if not np.isin(mask, (0, 1)).all():
            raise ValueError
        mask = mask.astype(bool)
    except (ValueError, TypeError):
        raise ValueError(f"attention_mask: expected 0 and 1 in the shape of input_ids, found "
                         f"{shown(attention_mask)}") from None
    if mask.shape != shape or any(len(row) != shape[1] for row in rows):
        raise ValueError(f"attention_mask: expected the shape of input_ids {shape}, found {mask.shape}")
    return [row[seen] for row, seen in zip(rows, mask)]
