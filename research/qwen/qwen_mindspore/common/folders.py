"""
Folders to write to: the user's own, or, in a container without a home or with disks that can only be read, a temporary
one, which is said once.
"""
import contextlib
import functools
import os
import stat
import tempfile
from pathlib import Path

from qwen_mindspore.common.progress import say

__all__ = ["provide_folders", "temporary_folder", "usable", "user_folder"]

NAME = "qwen-mindspore"


def user_folder(variable, below_home, *parts):
    """
    Path below a folder of the user's.

    Args:
        variable (str): The environment variable that names it; a relative path there counts as none, as the XDG Base
            Directory Specification has it.
        below_home (str): Where it is otherwise.
        parts (str): The path in it.
    """
    folder = os.environ.get(variable, "")
    if not os.path.isabs(folder):
        folder = os.path.join(os.path.expanduser("~"), below_home)
    path = Path(folder, NAME, *parts)
    problem = _problem(path, may_be_file=True)
    if problem is None and path.is_absolute():
        return path
    return _replaced(f"{path}: {problem or 'no home folder'}", variable, Path(below_home).name.lstrip("."), *parts)


def usable(path, *names):
    """
    A folder that is to be written to, or, where it can't be, one in the user's temporary folder.

    Args:
        path (str | Path): It; relative ones are of the working folder.
        names (str): What the other one is called.
    """
    problem = _problem(path)
    return Path(path) if problem is None else _replaced(f"{path}: {problem}", None, *names)


def provide_folders():
    """
    Give MindFormers a home and a folder for its logs where it has none: without them it can't be imported. It makes
    `output/log` in the working folder at that time, and what it imports asks for the home.
    """
    if not os.path.isabs(os.path.expanduser("~")):  # neither HOME nor a user of that number
        home = _replaced("no home folder", "HOME", "home")
        with contextlib.suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(home)
    try:
        os.getcwd()
    except OSError:  # nothing runs there, and the command says so
        return
    output = os.environ.get("LOCAL_DEFAULT_PATH", "output")
    if _problem(output) is not None:
        os.environ["LOCAL_DEFAULT_PATH"] = output = str(usable(output, "output"))
    logs = os.environ.get("LOG_MF_PATH")
    if logs is not None and _problem(os.path.expanduser(logs)) is not None:
        os.environ["LOG_MF_PATH"] = str(usable(os.path.expanduser(logs), "output", "log"))


def _problem(path, may_be_file=False):
    """Why there is no folder of that name to be written to, or made, nor, if it may be, a file to be read."""
    try:
        path = Path(path).absolute()
        if may_be_file and path.is_file():
            return None if os.access(path, os.R_OK) else "it can't be read"
        place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    except OSError as error:  # a working folder that is no more, or a folder that nobody may look into
        return error.strerror
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} can't be written to"


def _replaced(reason, variable, *parts):
    """The path in the temporary folder. Without one as well, the path that can't be made: who writes to it is told."""
    try:
        folder = temporary_folder()
    except OSError:
        return Path(os.devnull, NAME, *parts)
    advice = f"; {variable} names another" if variable else ""
    _say_once(f"{reason}: {folder} is used instead{advice}")
    return folder.joinpath(*parts)


@functools.cache
def temporary_folder():
    """
    A folder of this user's in the system's temporary one; the same in every process, if nobody else has it.

    Raises:
        OSError: There is no temporary folder.
    """
    path = Path(tempfile.gettempdir(), f"{NAME}-{os.getuid()}")
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        # Programs are loaded from there: it must be nobody else's.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    return path


_said = []


def _say_once(text):
    if not _said:
        say(NAME, text)
    _said.append(text)
