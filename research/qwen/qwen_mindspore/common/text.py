"""How messages show values, and what the command line's arguments say."""
import os
from itertools import chain

__all__ = ["argument_text", "listed", "one_line", "readable_bytes", "shown"]

BRACKETS = {list: "[]", tuple: "()", dict: "{}"}


def shown(value, limit=60):
    """
    `repr(value)`, cut off where it is longer than `limit` characters: no more of it is made, so that a value may hold
    itself, or one thing a million times, as YAML's aliases can make it.
    """
    text = ""
    for part in _parts(value):
        text += part
        if len(text) > limit:
            return text[:limit - 3] + "..."
    return text


def one_line(text):
    """What a parser says, which may repeat what it has read, as one line that prints."""
    return "".join(character if character.isprintable() else repr(character)[1:-1]
                   for character in " ".join(str(text).replace("\t", "\\t").split()))


def listed(names, limit=200):
    """Names with commas between them, on one line, cut off where they are longer than `limit` characters together."""
    text = ", ".join(name if isinstance(name, str) and name.isprintable() else repr(name) for name in names)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def _parts(value):
    """The texts of which repr(value) consists."""
    if type(value) not in BRACKETS or not value:
        yield _of_one(value)
        return
    opening, closing = BRACKETS[type(value)]
    items = value.items() if type(value) is dict else value
    yield opening
    for number, item in enumerate(items):
        separator = [", "] if number else []
        if type(value) is dict:
            yield from chain(separator, _parts(item[0]), [": "], _parts(item[1]))
        else:
            yield from chain(separator, _parts(item))
    yield "," + closing if type(value) is tuple and len(value) == 1 else closing


def _of_one(value):
    try:
        return repr(value).replace("\n", " ")
    except ValueError:  # of an integer with thousands of digits
        return f"an unreadable {type(value).__name__}"


def argument_text(argument):
    """
    An argument of the command line as the text that was typed, whatever the locale that Python has decoded it by.

    Raises:
        ValueError: Its bytes are not UTF-8.
    """
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}): the terminal or the script has another encoding") from None
    except UnicodeEncodeError:  # a surrogate that no argument has
        raise ValueError("not UTF-8") from None


def readable_bytes(count):
    """A number of bytes for a person: 3.7 GB, 12.5 MB, 775 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
