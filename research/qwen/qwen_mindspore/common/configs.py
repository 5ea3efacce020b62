"""YAMLs, and those that they inherit from."""
import os
from pathlib import Path

from qwen_mindspore.common.text import one_line, shown

__all__ = ["read_config"]

BASE = "base_config"


def read_config(path):
    """
    A YAML merged over those that its `base_config` names, as MindFormers' `MindFormerConfig` merges them: the path of a
    base is relative to the YAML's folder, dicts are merged key by key, anything else is replaced.

    Args:
        path (str | Path): The YAML.

    Returns:
        dict, without `base_config`.

    Raises:
        FileNotFoundError: No such file, or a base is missing.
        ValueError: Not YAML, not a dict, or bases that name each other.
    """
    try:
        return _read(Path(path), ())
    except RecursionError:  # an alias of YAML inside what it stands for
        raise ValueError(f"{path}: not a YAML of sections: it is nested without end") from None


def _read(path, heirs):
    content = _load(path, heirs)
    bases = content.pop(BASE, [])
    merged = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base.isprintable():
            raise ValueError(f"{path}: {BASE}: expected the path of a YAML or a list of them, found {shown(base)}")
        # MindFormers takes a later base's sections whole.
        merged.update(_read(Path(os.path.dirname(path), base), (*heirs, path)))
    return _merge(content, merged)


def _load(path, heirs):
    import yaml

    if not path.is_file():
        if heirs:
            raise FileNotFoundError(f"{heirs[-1]}: {BASE}: {path}: no such file; a path there is relative to the "
                                    "YAML's folder: copy the base as well, or name it by its whole path")
        raise FileNotFoundError(f"{path}: no such file")
    if path.resolve() in [heir.resolve() for heir in heirs]:
        raise ValueError(f"{heirs[-1]}: {BASE}: {path} inherits from this file: remove one of them")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise
    except Exception as error:  # a tag on a value that is none of its kind, as in "!!int x", may raise any
        raise ValueError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a YAML of sections, found {type(content).__name__}")
    return content


def _merge(over, under):
    """`over` merged into `under`."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(value, merged[key]) if both else value
    return merged
