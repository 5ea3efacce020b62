"""
Folders to write to: the user's own, or, in a container without a home or with disks that can only be read, a temporary
one, which is said once.
"""
import functools
import os
import stat
import tempfile
from pathlib import Path

from qwen_mindspore.common.progress import say

__all__ = ["temporary_folder", "usable", "user_folder", "working_folder_problem"]

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
        home = os.path.expanduser("~")  # as it stands where there is neither HOME nor a user of that number
        folder = os.path.join(home, below_home) if os.path.isabs(home) else None
    kind = Path(below_home).name.lstrip(".")
    if folder is None:
        return _replaced(f"no home folder for the {kind}", variable, kind, *parts)
    path = Path(folder, NAME, *parts)
    problem = _problem(path)
    return path if problem is None else _replaced(f"{path}: {problem}", variable, kind, *parts)


def usable(path, *names):
    """
    A folder that is to be written to, or, where it can't be, one in the user's temporary folder.

    Args:
        path (str | Path): It; relative ones are of the working folder.
        names (str): What the other one is called.
    """
    problem = _problem(path)
    return Path(path) if problem is None else _replaced(f"{path}: {problem}", None, *names)


def working_folder_problem(path="."):
    """Why a folder, which need not be there yet, can't be written to; None where it can."""
    return _problem(path)


def _problem(path):
    """Why neither a file of that name is there to be read nor a folder of that name to be written to, or made."""
    try:
        path = Path(path).absolute()
        if path.is_file():
            return None if os.access(path, os.R_OK) else "it can't be read"
        place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    except OSError as error:  # a working folder that is no more, or one whose content is nobody's business
        return error.strerror
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} can't be written to"


def _replaced(reason, variable, *parts):
    """The path in the temporary folder. Without one as well, the path that can't be made: who writes to it is told."""
    try:
        folder = temporary_folder()
    except OSError:
        return Path("/nonexistent", NAME, *parts)
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
