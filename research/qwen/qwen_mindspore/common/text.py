"""How messages show values, and what the command line's arguments say."""
import os

__all__ = ["argument_text", "shown"]


def shown(value, limit=60):
    """`repr(value)` on one line, cut off where it is longer than `limit` characters."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # of an integer with thousands of digits
        text = f"an unreadable {type(value).__name__}"
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
