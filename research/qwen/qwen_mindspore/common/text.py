"""How messages show values, and what the command line's arguments say."""
import os

__all__ = ["argument_text", "readable_bytes", "shown"]


def shown(value, limit=60):
    """`repr(value)`, cut off where it is longer than `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."


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
