"""JSON in which numbers keep their text, and which is JSON whatever is written: JSON has no NaN and no infinity."""
import json
import math
import re
import secrets
from decimal import Decimal

__all__ = [
    "DEEPEST",
    "NamedTwice",
    "Number",
    "check_depth",
    "dump_json",
    "exact",
    "object_of",
    "parse_exact_json",
    "without_infinities",
]

DEEPEST = 100  # lists and objects within each other
LONGEST_INT = 4000  # digits that Python makes a number of, with some to spare
MARK = f"\u0001number {secrets.token_hex(8)} "  # what no text says
MARKED = re.compile(f'"{json.dumps(MARK)[1:-1]}([^"]*)"'.replace("\\", "\\\\"))
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class Number(float):
    """A number that is written as it was read, digit by digit; as a float it may be rounded, or infinite."""

    def __new__(cls, text):
        number = super().__new__(cls, text)
        number.text = str(text)
        return number

    def __repr__(self):
        return self.text


class NamedTwice(ValueError):
    """A name is there twice in an object: readers differ in which value they take."""


def object_of(pairs):
    """dict, the `object_pairs_hook` of `json.loads`; NamedTwice where one of two values would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise NamedTwice(f"{json.dumps(twice)} is there twice in one object")
    return content


def parse_exact_json(text, deepest=DEEPEST):
    """
    What `json.loads` gives, but for numbers that Python can't hold as they stand: those are `Number`s.

    Args:
        text (str | bytes): JSON.
        deepest (int): How deep lists and objects may be nested.

    Raises:
        ValueError: Not JSON, as NaN and Infinity aren't; a name that is there twice in an object (NamedTwice); or
            nested deeper than a reader may be asked to go.
    """
    try:
        content = json.loads(text, object_pairs_hook=object_of, parse_float=_float, parse_int=_int,
                             parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(too_deep(deepest)) from None
    check_depth(content, deepest)
    return content


def exact(content):
    """The same content with `Number`s where it has Decimals, as Parquet gives them; others as floats."""
    if isinstance(content, Decimal):
        return _float(str(content)) if content.is_finite() else None
    if isinstance(content, dict):
        return {name: exact(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [exact(value) for value in content]
    return content


def check_depth(content, deepest=DEEPEST):
    """ValueError where lists and objects are nested too deep."""
    level, depth = _nested([content]), 0
    while level:
        depth += 1
        if depth > deepest:
            raise ValueError(too_deep(deepest))
        level = _nested(item for part in level for item in (part.values() if isinstance(part, dict) else part))


def _nested(items):
    return [item for item in items if isinstance(item, (dict, list))]


def dump_json(content):
    """
    An object as one line of JSON, without the end of the line: UTF-8, and ASCII where that can't hold its text. What
    some readers take for the end of a line is escaped, too. Numbers that are infinite or none become null; what JSON
    has no type for becomes text.
    """
    content = _written(content)
    try:
        line = json.dumps(content, ensure_ascii=False, default=str, allow_nan=False).translate(LINE_ENDS)
        return MARKED.sub(r"\1", line).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return MARKED.sub(r"\1", json.dumps(content, default=str, allow_nan=False)).encode("ascii")


def without_infinities(content):
    """The same content with None where it has a NaN or an infinity, which JSON has not."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {name: without_infinities(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_infinities(value) for value in content]
    return content


def _written(content):
    """What `json.dumps` writes rightly but for marks around the text of numbers."""
    if isinstance(content, (Number, Decimal)):
        return f"{MARK}{content!s}" if math.isfinite(content) or isinstance(content, Number) else None
    if isinstance(content, float):  # numpy's among them
        return float(content) if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name if isinstance(name, str) else str(name): _written(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_written(value) for value in content]
    return content


def _float(text):
    number = float(text)
    return number if repr(number) == text else Number(text)


def _int(text):
    return int(text) if len(text) < LONGEST_INT and text != "-0" else Number(text)


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON number")


def too_deep(deepest):
    """The message for content that is nested deeper than that."""
    return f"lists and objects are nested deeper than {deepest}"
