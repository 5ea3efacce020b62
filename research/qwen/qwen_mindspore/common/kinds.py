"""
The kinds of values that settings take, and how a value that is written by hand is meant.

YAML 1.1 reads 1e-5 as a text, people quote "False" and "8192", other programs write 4.0 for 4: what can mean one thing
only is taken for that. Anything else is refused by name: a "False" that counts as true would give wrong answers, a text
where a number is wanted an error far from its cause.
"""
import math
import numbers
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from qwen_mindspore.common.text import shown

__all__ = ["CHAT_FORMAT", "COUNT", "COUNT_OR_0", "DROPOUT", "DTYPE", "FLAG", "INTEGER", "NOT_NEGATIVE", "NUMBER",
           "PATH", "POSITIVE", "SHARE", "TEXT", "TEXTS", "TOKEN_ID", "TOKEN_IDS", "Kind", "choice", "one_of",
           "optional", "read_as", "read_keys", "section"]

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")  # YAML 1.1's, and a command line's
LARGEST = 2**31 - 1  # of a size: shapes and ids are int32 in the graph
DTYPES = {"float16": "float16", "fp16": "float16", "f16": "float16", "half": "float16",
          "bfloat16": "bfloat16", "bf16": "bfloat16",
          "float32": "float32", "fp32": "float32", "f32": "float32", "float": "float32"}


@dataclass(frozen=True)
class Kind:
    """
    The values that a key takes.

    Attributes:
        expected (str): In words, for the message.
        read (function): The value as it is meant; raises ValueError, TypeError, KeyError or OverflowError for another.
        optional (bool): None is one of them.
        off (int): What switches the setting off, for the message where someone has tried it with 0 or less.
    """

    expected: str
    read: Callable
    optional: bool = False
    off: int | None = None


class Refused(ValueError):
    """A value within the value: the message names its key."""


def read_as(kind, key, value):
    """
    A value as it is meant.

    Args:
        kind (Kind): What the key takes.
        key (str): Its name, for the message.
        value: As it was given.

    Raises:
        ValueError: `KEY: expected WHAT, found VALUE`.
    """
    if value is None and kind.optional:
        return None
    try:
        return kind.read(value)
    except Refused as error:
        raise ValueError(f"{key}: {error}") from None
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"{key}: expected {kind.expected}, found {shown(value)}{_advice(kind, value)}") from None


def _advice(kind, value):
    try:
        return f": write {kind.off} to switch it off" if kind.off is not None and _as_number(value) <= 0 else ""
    except (ValueError, OverflowError):
        return ""


def read_keys(table, values, place=""):
    """
    The values of a dict, each as it is meant; what the table doesn't know stays as it is.

    Args:
        table (dict): Key -> Kind.
        values (dict): As they were given.
        place (str): What the message puts before the key.

    Raises:
        ValueError: See `read_as`.
    """
    return {key: read_as(table[key], f"{place}{key}", value) if key in table else value
            for key, value in values.items()}


def optional(kind):
    """The same kind, or None."""
    return Kind(f"{kind.expected} or None", kind.read, True)


def section(table):
    """A dict of keys that each have a kind."""
    def read(value):
        _require(isinstance(value, dict))
        try:
            return read_keys(table, value)
        except ValueError as error:
            raise Refused(*error.args) from None

    return Kind("a section of keys", read)


def choice(*names):
    """One of some names, in whatever case."""
    known = {name.lower(): name for name in names}

    def read(value):
        _require(isinstance(value, str))
        return known[value.strip().lower()]

    return Kind(", ".join(names), read)


def one_of(*kinds):
    """What the first of these kinds that takes the value makes of it."""
    def read(value):
        for kind in kinds:
            try:
                return kind.read(value)
            except (ValueError, TypeError, KeyError, OverflowError):
                continue
        raise ValueError

    return Kind(" or ".join(kind.expected for kind in kinds), read)


def _require(fits):
    if not fits:
        raise ValueError


def _flag(value):
    if isinstance(value, str):
        word = value.strip().lower()
        _require(word in TRUE or word in FALSE)
        return word in TRUE
    _require(value in (0, 1))
    return bool(value)


def _as_number(value):
    """The number that a value is or says."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if re.fullmatch(r"[+-]?\d+", text, re.ASCII) else float(text)
    _require(isinstance(value, numbers.Real) and not isinstance(value, bool))
    return value


def _integer(lowest=None):
    def read(value):
        given = _as_number(value)
        number = int(given)
        _require(number == given and abs(number) <= LARGEST)
        _require(lowest is None or number >= lowest)
        return number

    return read


def _number(fits=lambda value: True):
    def read(value):
        given = _as_number(value)
        number = given if type(value) in (int, float) else float(given)
        _require(math.isfinite(number) and fits(number))
        return number

    return read


def _dtype(value):
    return DTYPES[str(value).strip().lower().removeprefix("torch.").removeprefix("mindspore.")]


def _path(value):
    _require(isinstance(value, (str, os.PathLike)))
    path = os.fspath(value)
    _require(isinstance(path, str) and "\0" not in path)
    return path


def _text(value):
    _require(isinstance(value, str))
    return value


def _texts(value):
    return [_text(item) for item in ([value] if isinstance(value, str) else value)]


def _token_ids(value):
    return [TOKEN_ID.read(item) for item in value] if isinstance(value, (list, tuple)) else TOKEN_ID.read(value)


FLAG = Kind("true or false", _flag)
INTEGER = Kind("an integer", _integer())
COUNT = Kind("a positive integer", _integer(1))
COUNT_OR_0 = Kind("an integer from 0", _integer(0))
NUMBER = Kind("a number", _number())
POSITIVE = Kind("a number above 0", _number(lambda value: value > 0))
NOT_NEGATIVE = Kind("a number from 0", _number(lambda value: value >= 0))
SHARE = Kind("a number above 0, up to 1", _number(lambda value: 0 < value <= 1))
DROPOUT = Kind("a number from 0, below 1", _number(lambda value: 0 <= value < 1))
TOKEN_ID = Kind("a token id, -1 for none", _integer(-1))
TOKEN_IDS = Kind("a token id, -1 for none, a list of them", _token_ids)
DTYPE = Kind("float16, bfloat16 or float32", _dtype)
PATH = Kind("a path", _path)
TEXT = Kind("a text", _text)
TEXTS = Kind("a list of texts", _texts)
CHAT_FORMAT = choice("raw", "chatml")
