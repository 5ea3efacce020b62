"""How an answer is generated: the settings, where they are read from, and what values they may have."""
import contextlib
import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path

from qwen_mindspore.common.files import decode_text, parse_json
from qwen_mindspore.common.kinds import CHAT_FORMAT

__all__ = ["GenerationSettings", "check_sampling"]

FROM_CONFIG = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "chat_format", "eos_token_id")
NO_TOKEN = -1  # an eos_token_id that says that there is none


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_words(value, is_word):
    return isinstance(value, tuple) and all(word and is_word(word) for word in value)


def _is_ids(value):
    return isinstance(value, tuple) and all(_is_whole(token) and token >= 0 for token in value)


# name -> (what it may be, in words; whether a value is that)
SAMPLING = {
    "temperature": ("a number above 0", lambda x: _is_number(x) and x > 0),
    "top_k": ("a whole number from 0, which is off", lambda x: _is_whole(x) and x >= 0),
    "top_p": ("a number above 0 and up to 1, which is off", lambda x: _is_number(x) and 0 < x <= 1),
    "repetition_penalty": ("a number above 0", lambda x: _is_number(x) and x > 0),
}
ALLOWED = {
    **SAMPLING,
    "max_new_tokens": ("a whole number from 1", lambda x: _is_whole(x) and x >= 1),
    "do_sample": ("True or False", lambda x: isinstance(x, bool)),
    "stop_words_ids": ("a list of lists of ids, none empty", lambda x: _is_words(x, _is_ids)),
    "stop_words": ("a list of strings, none empty", lambda x: _is_words(x, lambda word: isinstance(word, str))),
    "seed": ("a whole number from 0 to 2**32 - 1", lambda x: x is None or (_is_whole(x) and 0 <= x < 2 ** 32)),
    "chat_format": ("'raw' or 'chatml'", lambda x: x in ("raw", "chatml")),
    "max_window_size": ("a whole number from 1", lambda x: _is_whole(x) and x >= 1),
    "eos_token_id": ("an id or a list of ids", lambda x: all(map(_is_whole, x if isinstance(x, tuple) else [x]))),
}


def check_sampling(settings):
    """
    Raises:
        ValueError: A sampling setting of GenerationSettings, or of MindFormers' GenerationConfig, where None is off, is
            out of its range.
    """
    for name in SAMPLING:
        value = getattr(settings, name)
        if value is not None:
            _checked(name, value)


def _checked(name, value):
    """The value as settings hold it, lists as tuples; ValueError for one that the setting can't have."""
    if isinstance(value, (list, tuple)):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if name == "chat_format":
        with contextlib.suppress(ValueError, KeyError):
            value = CHAT_FORMAT.read(value)
    words, is_valid = ALLOWED[name]
    if not is_valid(value):
        raise ValueError(f"{name}: expected {words}, found {value!r}")
    return value


@dataclass(frozen=True)
class GenerationSettings:
    """
    How to generate one answer.

    Args:
        max_new_tokens (int): The most tokens of the answer.
        do_sample (bool): Draw each token; otherwise the likeliest one is taken.
        temperature (float): Logits are divided by it before drawing.
        top_k (int): Draw from so many likeliest tokens; 0 is off.
        top_p (float): Draw from the fewest likeliest tokens that hold so much of the probability; 1 is off.
        repetition_penalty (float): Logits of tokens that are in the prompt or the answer are divided by it, or, below
            zero, multiplied; 1 is off.
        stop_words_ids (Sequence[Sequence[int]]): Sequences of ids that end the answer and are cut off it.
        stop_words (Sequence[str]): Strings that do so, wherever tokens begin and end.
        seed (int): Same seed, same answer. None: each answer is drawn anew.
        chat_format (str): "chatml" where the model is a chat model, else "raw".
        max_window_size (int): The most tokens of a conversation that are kept as the prompt.

    Raises:
        ValueError: A value that a setting can't have; the message names the setting, its range and the value.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_words: tuple[str, ...] = ()
    seed: int | None = None
    chat_format: str = "raw"
    max_window_size: int = 6144

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    def override(self, **changes) -> "GenerationSettings":
        """
        The same settings but for those given; None means not given.

        Raises:
            ValueError: No such setting, or a value that it can't have.
        """
        names = [field.name for field in fields(self)]
        for name in changes:
            if name not in names:
                raise ValueError(f"{name}: no such setting, expected one of {', '.join(names)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def load(cls, config, checkpoint=None, **overrides) -> "GenerationSettings":
        """
        The settings of a model: the defaults; over them what its config says, then the `generation_config.json` beside
        its checkpoint, then `overrides`.

        Ids of `eos_token_id`, one or a list, count as stop words beside `stop_words_ids`. Keys of the file that are no
        settings are ignored.

        Args:
            config (QwenConfig): Read are `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty`,
                `eos_token_id`, `chat_format`, and `max_decode_length` as the length of an answer.
            checkpoint (str | Path): The folder or file of the weights. Default: `config.checkpoint_name_or_path`.
            overrides: Settings, and `eos_token_id`; None means not given.

        Raises:
            ValueError: A setting that does not exist or a value that it can't have; for a value of the file the message
                names the file.

        Source: https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/generation_config.json
        """
        values = {name: getattr(config, name, None) for name in FROM_CONFIG}
        values["max_new_tokens"] = getattr(config, "max_decode_length", None)
        file = _generation_config(checkpoint or getattr(config, "checkpoint_name_or_path", None))
        if file is not None:
            values |= _read(file)
        values |= {name: value for name, value in overrides.items() if value is not None}
        eos = values.pop("eos_token_id", None)
        settings = cls().override(**values)
        ends = () if eos is None else _checked("eos_token_id", eos if isinstance(eos, (list, tuple)) else [eos])
        words = dict.fromkeys([*settings.stop_words_ids, *((token,) for token in ends if token != NO_TOKEN)])
        return replace(settings, stop_words_ids=tuple(words))


def _generation_config(checkpoint):
    """The generation_config.json beside a checkpoint; None where there is none."""
    if not checkpoint:
        return None
    path = Path(checkpoint)
    path = (path if path.is_dir() else path.parent) / "generation_config.json"
    return path if path.is_file() else None


def _read(path):
    """The settings of a generation_config.json, with `eos_token_id`; ValueError, naming the file, for a bad one."""
    try:
        content = parse_json(decode_text(path.read_bytes()))
        if type(content) is not dict:
            raise ValueError(f"expected an object of settings, found {type(content).__name__}")
        return {name: _checked(name, content[name]) for name in ALLOWED if content.get(name) is not None}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
