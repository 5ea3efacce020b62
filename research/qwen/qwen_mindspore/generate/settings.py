"""
How an answer is generated: the settings, where they are read from, and what values they may have.

The table `ALLOWED` is where every command, file, row and call finds out what a setting may be, and what a value is as
settings hold it: a Python number, lists as tuples. Where all there is is text, as in a CSV, or where text stands for a
value, as in many a JSON or YAML, `from_text` gives the value.
"""
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from qwen_mindspore.common.files import read_json
from qwen_mindspore.common.json_text import parse_exact_json
from qwen_mindspore.common.kinds import (
    CHAT_FORMAT,
    COUNT,
    COUNT_OR_0,
    FLAG,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHARE,
    TEXT,
    TOKEN_ID,
    Kind,
    advised,
    as_number,
    integer,
    read_as,
    require,
    unquoted,
)
from qwen_mindspore.common.text import nearest
from qwen_mindspore.generate.unavailable import tell_of_unavailable

__all__ = ["ALLOWED", "BOOLEAN", "FROM_0", "FROM_1", "IN_FILES", "SAMPLING", "GenerationSettings", "from_text"]

FROM_CONFIG = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "chat_format", "eos_token_id")
NO_TOKEN = -1  # an eos_token_id that says that there is none


def _boolean(value):
    require(isinstance(value, (bool, np.bool_)))
    return bool(value)


def _list(value, read):
    if isinstance(value, np.ndarray):
        value = value.tolist()
    require(isinstance(value, (list, tuple)))
    return tuple(map(read, value))


def _word(value):
    require(value)
    return TEXT.read(value)


def _ids(value):
    ids = _list(value, FROM_0.read)
    require(ids)
    return ids


def _ends(value):
    """Ids that end a sequence, without the one that says that there is none."""
    if value is None:
        return ()
    ids = _list(value if isinstance(value, (list, tuple, np.ndarray)) else [value], FROM_NO_TOKEN.read)
    return tuple(token for token in ids if token != NO_TOKEN)


def _biases(value):
    """Pairs of an id, of which JSON makes a text, and what is added to its logit, from a dict or from pairs."""
    pairs = value.items() if isinstance(value, dict) else _list(value, tuple)
    pairs = tuple((integer(0, math.inf)(token), float(BIAS.read(bias))) for token, bias in pairs)
    require(len(dict(pairs)) == len(pairs))  # of "1" and "1.0", or [[1, 2], [1, 3]], one would be lost
    return pairs


def _integer(kind, lowest):
    """Integers of a call, however large: a length may say that there is no limit."""
    return unquoted(Kind(kind.expected, integer(lowest, math.inf)))


def _float(expected, kind, advice):
    return advised(Kind(expected, lambda value: float(unquoted(kind).read(value))), advice)


def _optional_count(what):
    return unquoted(Kind(f"an integer from 0, {what}", integer(0), optional=True))


def _within(lowest, highest):
    """Numbers of a range, both of its ends among them."""
    def read(value):
        number = NUMBER.read(value)
        require(lowest <= number <= highest)
        return float(number)

    return unquoted(Kind(f"a number from {lowest} to {highest}", read))


FROM_0, FROM_1, FROM_NO_TOKEN = _integer(COUNT_OR_0, 0), _integer(COUNT, 1), _integer(TOKEN_ID, NO_TOKEN)
BOOLEAN = Kind("True or False", _boolean)
PENALTY, BIAS = _within(-2, 2), _within(-100, 100)  # OpenAI's ranges
SAMPLING = {
    # 0 is as good, see GenerationSettings.
    "temperature": _float("a number above 0", NOT_NEGATIVE, ", and 0 takes the likeliest token"),
    "top_k": advised(Kind("an integer from 0, which is off", FROM_0.read), ": write 0 to switch it off"),
    "top_p": _float("a number above 0 and up to 1, which is off", SHARE, ": write 1 to switch it off"),
    "repetition_penalty": _float("a number above 0", POSITIVE, ": write 1 to switch it off"),
}
ALLOWED = {
    **SAMPLING,
    "min_p": _within(0, 1),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "logit_bias": Kind("{id: a number from -100 to 100}, each id once", _biases),
    "max_new_tokens": FROM_1,
    "min_new_tokens": FROM_0,
    "ignore_eos": BOOLEAN,
    "do_sample": BOOLEAN,
    "stop_words_ids": Kind("a list of lists of ids, none empty", lambda value: _list(value, _ids)),
    "stop_words": Kind("a list of strings, none empty", lambda value: _list(value, _word)),
    "seed": unquoted(Kind("an integer from 0 to 2**32 - 1", integer(0, 2**32 - 1), optional=True)),
    "chat_format": Kind("'raw' or 'chatml'", CHAT_FORMAT.read),
    "max_window_size": FROM_1,
    "logprobs": _optional_count("how many likely tokens to tell beside the chosen one"),
    "prompt_logprobs": _optional_count("how many likely tokens to tell beside the prompt's"),
    "eos_token_id": Kind(f"an id or a list of ids ({NO_TOKEN}: none)", _ends),
}
OF_A_REQUEST = ("logprobs", "prompt_logprobs", "logit_bias", "ignore_eos")  # no file has them for all answers
# In a file and in a row, where a boolean may be written as YAML has it.
IN_FILES = {name: Kind(kind.expected, FLAG.read) if kind is BOOLEAN else kind for name, kind in ALLOWED.items()}
TEXTS = ("stop_words", "chat_format")  # what stands in a file as text is the value


def from_text(name, value):
    """
    The value that is meant where a setting stands as text: "0.8", "True", "[3, 4]"; any other value as it is.
    Numbers are written as everywhere, see `kinds.as_number`.
    """
    if not isinstance(value, str) or name in TEXTS:
        return value
    text = value.strip()
    try:
        return as_number(text)
    except ValueError:
        pass
    try:
        return parse_exact_json(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return value  # which is refused by name


@dataclass(frozen=True)
class GenerationSettings:
    """
    How to generate one answer.

    A temperature of 0 means what it does everywhere: the likeliest token is taken, whatever `do_sample` says.

    Args:
        max_new_tokens (int): The most tokens of the answer.
        do_sample (bool): Draw each token; otherwise the likeliest one is taken.
        temperature (float): Logits are divided by it before drawing; 0: the likeliest token is taken.
        top_k (int): Draw from so many likeliest tokens; 0 is off.
        top_p (float): Draw from the fewest likeliest tokens that hold so much of the probability; 1 is off.
        repetition_penalty (float): Logits of tokens that are in the prompt or the answer are divided by it, or, below
            zero, multiplied; 1 is off.
        min_p (float): Draw from the tokens that are at least so likely as this share of the likeliest; 0 is off.
        presence_penalty (float): Taken from the logits of tokens that are in the answer; 0 is off.
        frequency_penalty (float): Taken from the logit of a token as often as it is in the answer; 0 is off.
        logit_bias (dict[int, float]): Added to the logits of these ids; kept as pairs.
        min_new_tokens (int): Before so many tokens nothing ends the answer.
        ignore_eos (bool): The ids that the model ends its answers with end none; stop words do.
        logprobs (int): With each token its log probability is told, and so many of the likeliest tokens with theirs.
            None: nothing.
        prompt_logprobs (int): The same of the prompt's tokens.
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
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_words: tuple[str, ...] = ()
    seed: int | None = None
    chat_format: str = "raw"
    max_window_size: int = 6144

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, read_as(ALLOWED[field.name], field.name, getattr(self, field.name)))
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens: expected at most max_new_tokens ({self.max_new_tokens}), found "
                             f"{self.min_new_tokens}")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.do_sample and self.temperature > 0

    def of_row(self, number) -> "GenerationSettings":
        """
        The settings of one of many answers that are drawn with the same seed: with a seed of its own, made of theirs
        and its number, so that it does not depend on what else is answered when.
        """
        if not self.draws:
            return self
        seeds = np.random.SeedSequence([self.seed or 0, number])
        return self.override(seed=int(seeds.generate_state(1)[0]))

    def override(self, **changes) -> "GenerationSettings":
        """
        The same settings but for those given; None means not given.

        Raises:
            ValueError: No such setting, or a value that it can't have.
        """
        names = [field.name for field in fields(self)]
        for name in changes:
            if name not in names:
                raise ValueError(f"{name}: no such setting, expected one of {', '.join(names)}{nearest(name, names)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def load(cls, config, checkpoint=None, **overrides) -> "GenerationSettings":
        """
        The settings of a model: the defaults; over them what its config says, then the `generation_config.json` beside
        its checkpoint, then `overrides`.

        Ids of `eos_token_id`, one or a list, count as stop words beside `stop_words_ids`. Keys of the file that are no
        settings are ignored; where they ask for what there is not, as num_beams does, that is said on standard error.

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
        values = {name: from_text(name, getattr(config, name, None)) for name in FROM_CONFIG}
        length = getattr(config, "max_decode_length", None)
        if length is not None:
            values["max_new_tokens"] = read_as(FROM_1, "max_decode_length", from_text("max_decode_length", length))
        values |= cls.of_file(checkpoint or getattr(config, "checkpoint_name_or_path", None))
        values |= {name: value for name, value in overrides.items() if value is not None}
        ends = read_as(ALLOWED["eos_token_id"], "eos_token_id", values.pop("eos_token_id", None))
        settings = cls().override(**values)
        words = dict.fromkeys([*settings.stop_words_ids, *((token,) for token in ends)])
        return replace(settings, stop_words_ids=tuple(words))

    @staticmethod
    def of_file(checkpoint) -> dict:
        """
        What the `generation_config.json` beside a checkpoint says: {setting or "eos_token_id": value}. Numbers and
        booleans may stand in quotes.

        Raises:
            ValueError: Not JSON, or a value that a setting can't have; the message names the file.
        """
        file = _generation_config(checkpoint)
        return {} if file is None else _read(file)


def _generation_config(checkpoint):
    """The generation_config.json beside a checkpoint; None where there is none."""
    if not checkpoint:
        return None
    path = Path(checkpoint)
    path = (path if path.is_dir() else path.parent) / "generation_config.json"
    return path if path.is_file() else None


def _read(path):
    """The settings of a generation_config.json, with `eos_token_id`; ValueError, naming the file, for a bad one."""
    content = read_json(path)
    tell_of_unavailable(path, content, ALLOWED)
    try:
        return {name: read_as(kind, name, from_text(name, content[name])) for name, kind in IN_FILES.items()
                if name not in OF_A_REQUEST and content.get(name) is not None}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
