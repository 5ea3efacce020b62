"""YAMLs, and those that they inherit from."""
import functools
import os
from pathlib import Path

from qwen_mindspore.common.files import configs_folder, read_text
from qwen_mindspore.common.keys import read_config_json, read_sections
from qwen_mindspore.common.text import one_line, shown

__all__ = ["check_section", "read_config", "read_model_config"]

BASE = "base_config"
DEPTH = 64  # of sections in sections: nobody's YAML is deeper, but for one that holds itself
MODELS, CONFIGS = ("QwenForCausalLM",), ("QwenConfig", "LlamaConfig")


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
    return _read(Path(path), ())


def read_model_config(path):
    """
    The YAML of a model that a command runs, its values as they are meant: see `common.keys`.

    Returns:
        dict, as `read_config`'s.

    Raises:
        FileNotFoundError, ValueError: See `read_config`; a section is missing or no section; it is the YAML of another
            model; a value that its key doesn't take. The message names the file and the key.
    """
    content = read_config(path)
    check_section(path, content, "model", "model_config")
    check_section(path, content, "processor", "tokenizer")
    content = read_sections(content, path)
    content["context"] = content.get("context") or {}
    model = content["model"] = dict(content["model"])
    arch = model.setdefault("arch", {"type": MODELS[0]})
    _check_type(path, "model.arch", arch, MODELS)
    _check_type(path, "model.model_config", model["model_config"], CONFIGS)
    model["model_config"] = read_config_json(model["model_config"], f"{path}: model_config")
    return content


def check_section(path, content, section, key):
    """ValueError for a YAML without a section, or one that is none, and without what a command needs of it."""
    found = content.get(section)
    if not isinstance(found, dict) or not isinstance(found.get(key), dict):
        raise ValueError(f"{path}: expected a section {section} with {key}, as in the YAMLs in {configs_folder()}")


def _check_type(path, key, section, known):
    found = section.get("type") if isinstance(section, dict) else section
    if found not in known:
        raise ValueError(f"{path}: {key}.type: expected {' or '.join(known)}, found {shown(found)}")


def _read(path, heirs):
    content = _load(path, heirs)
    bases = content.pop(BASE, None) or []
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
        problem = "this is a folder" if path.is_dir() else "no such file"
        if heirs:
            raise FileNotFoundError(f"{heirs[-1]}: {BASE}: {path}: {problem}; a path there is relative to the "
                                    "YAML's folder: copy the base as well, or name it by its whole path")
        raise FileNotFoundError(f"{path}: {problem}")
    if path.resolve() in [heir.resolve() for heir in heirs]:
        raise ValueError(f"{heirs[-1]}: {BASE}: {path} inherits from this file: remove one of them")
    try:
        content = yaml.load(read_text(path), Loader=_loader())
    except Exception as error:  # a tag on a value that is none of its kind, as in "!!int x", may raise any
        reason = one_line(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a YAML of sections, found {type(content).__name__}")
    _check_keys(path, content)
    return content


@functools.cache
def _loader():
    """YAML's safe loader, but for keys that come twice, of which it would take the last without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node):
            if not hasattr(node, "is_flat"):  # what `<<` brings in may be said again
                node.is_flat, seen = True, {}
                for key, value in node.value:
                    value = value.value if isinstance(value, yaml.ScalarNode) else value
                    is_name = isinstance(key, yaml.ScalarNode) and key.value != "<<"
                    if is_name and seen.setdefault(key.value, value) != value:
                        raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is there twice, with another "
                                         "value")
            super().flatten_mapping(node)

    return Loader


def _check_keys(path, content, place="", depth=0):
    if depth > DEPTH:
        raise ValueError(f"{path}: {place.split('.')[0]}: expected sections, found more than {DEPTH} in each other")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: {place}{shown(key)}: expected a text as a key")
        if isinstance(value, dict):
            _check_keys(path, value, f"{place}{key}.", depth + 1)


def _merge(over, under):
    """`over` merged into `under`."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(value, merged[key]) if both else value
    return merged
