"""Files: where the user's caches are, digests, text and JSON, and writing a file or a folder whole or not at all."""
import codecs
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from qwen_mindspore.common.folders import user_folder
from qwen_mindspore.common.json_text import without_infinities
from qwen_mindspore.common.text import shown

__all__ = ["cache_folder", "check_disk", "check_encoding", "check_pointer", "configs_folder", "decode_text",
           "parse_json", "read_json", "read_text", "replacing", "sha256", "split_lines", "state_folder", "sync_folder",
           "to_json", "write_json"]

# Of several bytes, the longest first: UTF-32's begins as UTF-16's.
FOREIGN_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
                 codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
POINTER = b"version https://git-lfs"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def cache_folder(*parts):
    """
    Path below the user's cache of this project, `$XDG_CACHE_HOME/qwen-mindspore` or `~/.cache/qwen-mindspore`; in a
    temporary folder where it is not there and can't be made: see `folders.usable`.
    """
    return user_folder("XDG_CACHE_HOME", ".cache", *parts)


def state_folder(*parts):
    """Path below the user's state, `$XDG_STATE_HOME/qwen-mindspore` or `~/.local/state/qwen-mindspore`, likewise."""
    return user_folder("XDG_STATE_HOME", ".local/state", *parts)


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


def check_encoding(raw, place=None):
    """ValueError where the first bytes of a file are the byte order mark of another encoding than UTF-8."""
    for mark, name in FOREIGN_MARKS.items():
        if raw.startswith(mark):
            raise ValueError(f"{'' if place is None else f'{place}: '}expected UTF-8, found {name}: save it as UTF-8")


def decode_text(raw, place=None):
    """
    Bytes of a file as text, without the byte order mark that Windows' editors begin UTF-8 with.

    Args:
        raw (bytes): UTF-8, from the beginning of the file.
        place (str | Path): What the message begins with.

    Raises:
        ValueError: Another encoding, or no text at all.
    """
    before = "" if place is None else f"{place}: "
    check_encoding(raw, place)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{before}not UTF-8 (byte {error.start}): convert it") from None
    if "\0" in text:
        raise ValueError(f"{before}not a text (byte {raw.index(0)} is 0): expected UTF-8")
    return text.removeprefix("\ufeff")


def split_lines(text):
    """
    The lines of a text, without their ends: \\n, \\r\\n or \\r, as of any text file that Python opens. Nothing else
    ends one, as it does for `str.splitlines`: a form feed or U+2028 belongs to what somebody has written.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path):
    """The text of a UTF-8 file. Raises ValueError, see `decode_text`, or OSError, with the path."""
    return decode_text(Path(path).read_bytes(), path)


def parse_json(text):
    """What a JSON text says. Raises ValueError for one that is none, or that is nested beyond all bounds."""
    try:
        return json.loads(text, object_pairs_hook=_without_contradiction)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
        content = parse_json(decode_text(path.read_bytes()))
    except ValueError as error:
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
    """The bytes of a JSON file; null stands for a NaN or an infinity, which JSON has not."""
    content = without_infinities(content)
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


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
        cache = cache_folder()
        advice = "make room or choose another place"
        if folder.is_relative_to(cache):
            advice = (f"make room (qwen-ms cache lists what is there and deletes it), or move {cache} to another disk "
                      f"and set XDG_CACHE_HOME to the folder that it is in then")
        raise OSError(errno.ENOSPC, f"the disk is full, {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB "
                                    f"free: {advice}", str(folder))
