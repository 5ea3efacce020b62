"""Packages that only some tasks need: the extras of pyproject.toml."""
import importlib

__all__ = ["import_extra"]


def import_extra(module, extra, what):
    """
    A module of such a package.

    Args:
        module (str): Its name.
        extra (str): The extra of this project that installs it.
        what (str): What needs it, for the message.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{what} needs {module.partition('.')[0]}: pip install 'qwen-mindspore[{extra}]'") from None
