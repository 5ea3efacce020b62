"""
The kinds of values that settings take, and how a value that is written by hand is meant.

Numbers are numpy's, too, and Decimals; a float that is whole, as 2.0, counts as an integer, True and False as none.

YAML 1.1 reads 1e-5 as a text, people quote "False" and "8192", other programs write 4.0 for 4: what can mean one thing
only is taken for that. Anything else is refused by name: a "False" that counts as true would give wrong answers, a text
where a number is wanted an error far from its cause. In a call, where nobody writes "8192" for 8192, a text is refused:
see `unquoted`.
"""
import math
import numbers
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from qwen_mindspore.common.text import shown

__all__ = ["CHAT_FORMAT", "COUNT", "COUNT_OR_0", "DROPOUT", "DTYPE", "FLAG", "INTEGER", "NOT_NEGATIVE", "NUMBER",
           "PATH", "POSITIVE", "SHARE", "TEXT", "TEXTS", "TOKEN_ID", "TOKEN_IDS", "Kind", "advised", "as_number",
           "choice", "integer", "one_of", "optional", "read_as", "read_keys", "require", "section", "unquoted"]

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")  # YAML 1.1's, and a command line's
LARGEST = 2**31 - 1  # of a size: shapes and ids are int32 in the graph
NUMERAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
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
        advice (function): A value that is refused -> what the message adds: what to write instead.
    """

    expected: str
    read: Callable
    optional: bool = False
    advice: Callable = lambda value: ""


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
        ValueError: `KEY: expected WHAT, found VALUE`, and the kind's advice.
    """
    if value is None and kind.optional:
        return None
    try:
        return kind.read(value)
    except Refused as error:
        raise ValueError(f"{key}: {error}") from None
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"{key}: expected {kind.expected}, found {shown(value)}{kind.advice(value)}") from None


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
    return replace(kind, expected=f"{kind.expected} or None", optional=True)


def unquoted(kind):
    """The same kind, but a text does not stand for a number."""
    def read(value):
        require(not isinstance(value, str))
        return kind.read(value)

    return replace(kind, read=read)


def advised(kind, advice):
    """The same kind, whose message adds what to write instead of a number that is not above 0."""
    def advice_for(value):
        try:
            return advice if as_number(value) <= 0 else ""
        except (ValueError, OverflowError):
            return ""

    return replace(kind, advice=advice_for)


def section(table):
    """A dict of keys that each have a kind."""
    def read(value):
        require(isinstance(value, dict))
        try:
            return read_keys(table, value)
        except ValueError as error:
            raise Refused(*error.args) from None

    return Kind("a section of keys", read)


def choice(*names):
    """One of some names, in whatever case."""
    known = {name.lower(): name for name in names}

    def read(value):
        require(isinstance(value, str))
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


def require(fits):
    """What a `read` of a kind says of a value that does not fit."""
    if not fits:
        raise ValueError


def _flag(value):
    if isinstance(value, str):
        word = value.strip().lower()
        require(word in TRUE or word in FALSE)
        return word in TRUE
    require(value in (0, 1))
    return bool(value)


def as_number(value):
    """
    The number that a value is, or that a text says: digits, with a sign, a point, an exponent. ValueError for none; so
    for 1_000, 0x10 and 010, which languages read in different ways.
    """
    if isinstance(value, str):
        text = value.strip()
        require(NUMERAL.fullmatch(text))
        value = int(text) if re.fullmatch(r"[+-]?\d+", text, re.ASCII) else float(text)
    if isinstance(value, Decimal):
        value = float(value)
    require(isinstance(value, numbers.Real) and not isinstance(value, bool))
    return value


def integer(lowest=None, highest=LARGEST):
    """A `read` of integers in a range."""
    def read(value):
        given = as_number(value)
        number = int(given)
        require(number == given and abs(number) <= highest)
        require(lowest is None or number >= lowest)
        return number

    return read


def _number(fits=lambda value: True):
    def read(value):
        given = as_number(value)
        number = given if type(value) in (int, float) else float(given)
        require(math.isfinite(number) and fits(number))
        return number

    return read


def _dtype(value):
    return DTYPES[str(value).strip().lower().removeprefix("torch.").removeprefix("mindspore.")]


def _path(value):
    require(isinstance(value, (str, os.PathLike)))
    path = os.fspath(value)
    require(isinstance(path, str) and "\0" not in path)
    return path


def _text(value):
    require(isinstance(value, str))
    return value


def _texts(value):
    return [_text(item) for item in ([value] if isinstance(value, str) else value)]


def _token_ids(value):
    return [TOKEN_ID.read(item) for item in value] if isinstance(value, (list, tuple)) else TOKEN_ID.read(value)


FLAG = Kind("true or false", _flag)
INTEGER = Kind("an integer", integer())
COUNT = Kind("a positive integer", integer(1))
COUNT_OR_0 = Kind("an integer from 0", integer(0))
NUMBER = Kind("a number", _number())
POSITIVE = Kind("a number above 0", _number(lambda value: value > 0))
NOT_NEGATIVE = Kind("a number from 0", _number(lambda value: value >= 0))
SHARE = Kind("a number above 0, up to 1", _number(lambda value: 0 < value <= 1))
DROPOUT = Kind("a number from 0, below 1", _number(lambda value: 0 <= value < 1))
TOKEN_ID = Kind("a token id, -1 for none", integer(-1))
TOKEN_IDS = Kind("a token id, -1 for none, a list of them", _token_ids)
DTYPE = Kind("float16, bfloat16 or float32", _dtype)
PATH = Kind("a path", _path)
TEXT = Kind("a text", _text)
TEXTS = Kind("a list of texts", _texts)
CHAT_FORMAT = choice("raw", "chatml")
