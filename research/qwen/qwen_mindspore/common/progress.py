"""What a person who waits is told, on standard error."""
import sys

__all__ = ["progress_bar", "say"]


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
