"""What a person who waits is told, on standard error."""
import contextlib
import sys

__all__ = ["progress_bar", "say", "waiting"]


def progress_bar(total, name, **options):
    """
    A tqdm bar on standard error: a context manager with `update(count)`.

    Args:
        total (int): What `update` counts up to.
        name (str): What is at work.
        options: Others of tqdm: `unit`, `unit_scale`, ...
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=name, file=sys.stderr, **{"mininterval": 0.5, **options})


def say(name, text):
    """A line for the person who started the command `name`."""
    print(f"{name}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def waiting(name, text):
    """What the command `name` is at, said at once; on a terminal the line is gone when that is over."""
    at_terminal = sys.stderr.isatty()
    print(f"{name}: {text} ...", end="" if at_terminal else "\n", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if at_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
