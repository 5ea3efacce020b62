"""How messages show values."""
from itertools import chain

__all__ = ["one_line", "shown"]

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


def _parts(value):
    """The texts of which repr(value) consists."""
    if type(value) not in BRACKETS or not value:
        yield repr(value)
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
