"""Files: where the user's caches are, digests, JSON, and writing a file or a folder whole or not at all."""
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from qwen_mindspore.common.text import shown

__all__ = ["cache_folder", "check_disk", "check_pointer", "configs_folder", "read_json", "replacing", "sha256",
           "state_folder", "sync_folder", "to_json", "write_json"]

NAME = "qwen-mindspore"
POINTER = b"version https://git-lfs"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def cache_folder(*parts):
    """Path below the user's cache of this project, `$XDG_CACHE_HOME/qwen-mindspore` or `~/.cache/qwen-mindspore`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", NAME, *parts)


def state_folder(*parts):
    """Path below the user's state, `$XDG_STATE_HOME/qwen-mindspore` or `~/.local/state/qwen-mindspore`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", NAME, *parts)


def configs_folder():
    """Path of the YAMLs that are shipped: in an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[2] / "configs"


def sha256(path):
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def check_pointer(path):
    """ValueError where a file is what git leaves in place of a large one that it hasn't fetched (git-lfs)."""
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path}: a git-lfs pointer, not the file itself: run `git lfs pull` in its folder, or "
                             "download the file")


def read_json(path):
    """
    The dict in a JSON file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No JSON, no object, a git-lfs pointer, or a key that is there twice with different values. The
            message begins with the path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the model's {path.name} is needed")
    check_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_contradiction)
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError, too
        raise ValueError(f"{path}: not valid JSON ({error}): fetch the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}: fetch the file again")
    return content


def _without_contradiction(pairs):
    """The dict of a JSON object; of a key that comes twice Python would take the last without a word."""
    content = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise ValueError(f"{shown(key)} is there twice, as {shown(content[key])} and as {shown(value)}")
        content[key] = value
    return content


def to_json(content):
    """The bytes of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(path, content):
    """Write a JSON file, whole or not at all."""
    with replacing(path) as written:
        written.write_bytes(to_json(content))


@contextlib.contextmanager
def replacing(path, make_parents=True):
    """
    Write a file or a folder under a temporary name beside it, which becomes its name when the block ends; on an error
    what was there is there still.

    Args:
        path (str | Path): What is to be written. A folder must not exist, or be empty.
        make_parents (bool): Make the folder around it, if need be; otherwise it must be there.

    Yields:
        Path, where to write it. Nothing is there yet.
    """
    path = Path(path)
    if make_parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        written = Path(scratch, path.name)
        yield written
        os.replace(written, path)


def sync_folder(folder):
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_disk(folder, needed):
    """OSError where the disk of a folder, which need not be there yet, has not so many bytes free."""
    folder = Path(folder).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the disk is full, {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB "
                                    "free: make room or choose another place", str(folder))
