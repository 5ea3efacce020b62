"""Texts: how messages show values, what may be meant by a misspelt name, and which text is none."""
import difflib
import os
import re
from itertools import chain

__all__ = ["argument_text", "check_whole", "closest", "is_blank", "listed", "nearest", "one_line", "readable_bytes",
           "shown"]

BRACKETS = {list: "[]", tuple: "()", dict: "{}"}
HALF_PAIR = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def closest(name, names):
    """The one of some names that a misspelt one is closest to; None where it is one of them, or like none."""
    name, names = str(name), list(names)
    found = [] if name in names else difflib.get_close_matches(name, names, n=1)
    return found[0] if found else None


def nearest(name, names):
    """" (did you mean NAME?)" for a name that is close to one of those that there are, else ""."""
    found = closest(name, names)
    return f" (did you mean {found}?)" if found else ""


def is_blank(text):
    """
    Whether a text says nothing: it is empty, or all of it is white space. That is what Python's `str.isspace` has for
    it: Unicode's white space, U+2028 and the wide space of Chinese texts among it, and the separators U+001C to U+001F.
    A space without width (U+200B) is none.
    """
    return not text.strip()


def check_whole(text, name):
    """
    ValueError where there is half a surrogate pair in a text, as a JSON file's "\\ud83d" makes it: no character, and a
    tokenizer could but put another one in its place.

    Args:
        text (str): Any.
        name (str): What it is called in the message.
    """
    found = HALF_PAIR.search(text)
    if found:
        raise ValueError(f"{name}: character {found.start() + 1} is half a surrogate pair (\\u{ord(found[0]):04x}) and "
                         "no text: the file or program that it is from has cut a character in two")


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
