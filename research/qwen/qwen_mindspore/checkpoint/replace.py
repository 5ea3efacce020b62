"""
Putting a checkpoint where an older one may be, so that a kill at any moment leaves one of the two, whole.

A new folder is written beside its place, as `.NAME.new-XXXX`, and becomes NAME by one rename. Where NAME is there
already, its files that are no part of the checkpoint (a user's notes) are linked into the new folder first, and then
the two folders change names: in one step where the system can (renameat2), else in two, between which NAME is missing
and the older folder is `.NAME.old-XXXX`. `repair` gives it its name back.

Not every folder can be renamed: a mount point, a working directory, one with folders in it that are not ours, one whose
parent may not be written to. And a single file with config.json beside it shares its folder with others. There files
are written into `.NAME.moving-XXXX` in that folder, and then put in place one by one, in an order in which nobody can
take a half for the whole:

    1. The older checkpoint is removed, its index first: from then on the folder has less than a checkpoint.
    2. config.json and the like.
    3. The weights. Of several shards the last one makes the set complete.
    4. The index.

What is still to do is at every moment all that is in `.NAME.moving-XXXX`: a file REPLACES lists what step 1 removes and
is removed after it; it is called UNFINISHED while files are being written, so that nothing must be done but to remove
the folder. `repair` does what is left. A process holds a lock on its folder, by which others know that it lives.

Files are not brought to the disk (fsync): all this is about processes that are killed, not about power cuts.
"""
import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
from pathlib import Path

from qwen_mindspore.common.progress import say

__all__ = ["OUR_FILES", "repair", "replacing_checkpoint", "writes_one_file"]

OUR_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|param_name_map\.json")
# What describes an older checkpoint, and must not outlive it. Other sidecars, like the vocabulary, may.
DESCRIPTIONS = ("config.json", "quantize_config.json")
OLD_SCRATCH = ".partial-"  # as folders were called in which earlier versions wrote
UNFINISHED, REPLACES = ".unfinished", ".replaces"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def writes_one_file(output):
    """Whether the name of an output is that of one file, and not of a folder of shards."""
    return output.suffix in (".ckpt", ".safetensors")


@contextlib.contextmanager
def replacing_checkpoint(output, older):
    """
    Write a checkpoint whole or not at all; see the module.

    Args:
        output (Path): What is written: a folder, or one file, beside which others may be written.
        older (list[Path]): The files of the older checkpoint that it replaces.

    Yields:
        Path, an empty folder to write the files to. On an error nothing is left of them, nor of folders made for them.

    Raises:
        FileExistsError: Another process wrote this folder meanwhile.
    """
    place, is_file = _place(output), writes_one_file(output)
    folder = place.parent if is_file else place
    moves = is_file or (folder.exists() and not _can_be_renamed(folder))
    home = folder if moves else folder.parent
    made = [parent for parent in (home, *home.parents) if not parent.exists()]
    scratch = home / f".{place.name}.{'moving' if moves else 'new'}-{secrets.token_hex(4)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        with _locked(scratch):
            if moves:
                (scratch / UNFINISHED).touch()
                yield scratch
                _move_into(scratch, folder, older, is_file)
            else:
                yield scratch
                _rename(scratch, folder, older)
    except BaseException as error:
        if not moves:
            _put_back(folder)
        if not moves or (scratch / UNFINISHED).exists():
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full, nothing was written: "
                                        "make room or choose another place", str(folder)) from error
        raise


def repair(path, clean=False):
    """
    Finish or take back what a process that was killed has begun at a checkpoint. Whoever opens one calls it first.

    Args:
        path (str | Path): The checkpoint, a file or a folder; it need not be there.
        clean (bool): Remove the files that such processes have left, too; for whoever is to write there.

    Raises:
        BlockingIOError: Another process is replacing the checkpoint at this moment.
        OSError: What was begun can't be finished, by somebody who may not write there, say.
    """
    place = _place(Path(path))
    if place.parent.is_dir():
        _put_back(place)
        if clean:
            for scratch in [*_leftovers(place.parent, place.name, "new"), *_leftovers(place.parent, place.name, "old")]:
                _remove(scratch)
    folder = place if place.is_dir() else place.parent
    for scratch in _leftovers(folder, None, "moving"):
        _finish_moving(scratch, folder, clean)


def _place(path):
    """Where a checkpoint lies: behind a symlink, which stays one; a file in the folder where it has its name."""
    if writes_one_file(path) and not path.is_dir():
        return Path(os.path.realpath(path.parent), path.name)
    return Path(os.path.realpath(path))


# Folders that are renamed

def _can_be_renamed(folder):
    """Whether a folder can change places with another one and nobody misses the first."""
    status, groups = folder.stat(), {os.getegid(), *os.getgroups()}
    is_ours = status.st_uid == os.geteuid() and (status.st_gid in groups or os.geteuid() == 0)
    with contextlib.suppress(FileNotFoundError):  # a working directory that was removed
        if folder in (Path.cwd(), *Path.cwd().parents):
            return False
    foreign = [entry for entry in os.scandir(folder)
               if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(OLD_SCRATCH)]
    return is_ours and not foreign and not _is_mount(folder) and os.access(folder.parent, os.W_OK | os.X_OK)


def _is_mount(folder):
    """os.path.ismount does not see a folder mounted from elsewhere on the same disk."""
    if os.path.ismount(folder):
        return True
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        # Spaces and the like are written \040.
        places = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines)
        return str(folder) in places
    return False


def _rename(scratch, folder, older):
    """Let the folder `scratch` be `folder`."""
    try:
        if not folder.exists():
            os.rename(scratch, folder)
            return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise _overtaken(folder) from None
    _check_nothing_came(folder, older)
    if not _can_be_renamed(folder):  # no longer: somebody has made a folder in it
        inside = folder / f".{folder.name}.moving-{secrets.token_hex(4)}"
        (scratch / UNFINISHED).touch()
        os.rename(scratch, inside)
        _move_into(inside, folder, older, is_file=False)
        return
    _link_foreign(folder, scratch, older)
    os.chown(scratch, -1, folder.stat().st_gid)
    shutil.copymode(folder, scratch)
    former = scratch
    if not _exchange(scratch, folder):
        former = scratch.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
        with _locked(folder):  # so that nobody puts it back
            os.rename(folder, former)
            os.rename(scratch, folder)
    _link_foreign(former, folder, older)  # what came to the older folder since
    shutil.rmtree(former, ignore_errors=True)


def _link_foreign(source, target, older):
    """Give a folder the files of another that are no part of the older checkpoint, and that it lacks."""
    ours = {file.name for file in older} | set(DESCRIPTIONS if older else ())
    for entry in os.scandir(source):
        is_foreign = entry.name not in ours and not entry.is_dir(follow_symlinks=False)
        if is_foreign and not os.path.lexists(target / entry.name):
            _link(entry.path, target / entry.name)


def _link(source, target):
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(left, right):
    """Let two paths change names in one step; False where the system can't."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return function(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0


def _put_back(folder):
    """The older folder back to its name, where a process was killed between the two renames."""
    if os.path.lexists(folder) or not folder.parent.is_dir():
        return
    for former in _leftovers(folder.parent, folder.name, "old"):
        with _lock_of(former) as is_free:
            if not is_free:
                raise _busy(folder)
            _do(folder, f"rename {former} to it", lambda former=former: os.rename(former, folder))
        return


# Files that are moved

def _move_into(scratch, folder, older, is_file):
    """Let the files in `scratch`, a folder in `folder`, take the place of the older checkpoint."""
    if not is_file:
        _check_nothing_came(folder, older)
    new = set(os.listdir(scratch)) - {UNFINISHED}
    gone = [file.name for file in older]
    if is_file and not any(_differs(scratch / name, folder / name) for name in new - set(gone)):
        gone = []  # nothing beside the file changes: it is replaced in one step
    elif gone and not is_file:
        gone += [name for name in DESCRIPTIONS if name not in new]
    (scratch / UNFINISHED).write_text("\n".join(sorted(gone, key=_turn, reverse=True)), encoding="utf-8")
    os.replace(scratch / UNFINISHED, scratch / REPLACES)
    _move(scratch, folder)


def _differs(new, old):
    return not old.is_file() or old.read_bytes() != new.read_bytes()


def _move(scratch, folder):
    """Do what is left to do; see the module."""
    if (scratch / REPLACES).exists():
        for name in (scratch / REPLACES).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / Path(name).name)
        os.unlink(scratch / REPLACES)
    for name in sorted(os.listdir(scratch), key=_turn):
        os.replace(scratch / name, folder / name)
    os.rmdir(scratch)


def _turn(name):
    """When a file is put in its place: what describes the weights, the weights, what makes them one."""
    if name.endswith(".index.json") or name == "param_name_map.json":
        return 2, name
    return int(name.endswith((".safetensors", ".ckpt"))), name


def _finish_moving(scratch, folder, clean):
    with _lock_of(scratch) as is_free:
        is_unfinished = (scratch / UNFINISHED).exists()
        if is_free and not is_unfinished:
            _do(folder, f"move what is in {scratch} to it", lambda: _move(scratch, folder))
        elif is_free and clean:
            shutil.rmtree(scratch, ignore_errors=True)
        elif not is_free and not is_unfinished and scratch.exists():
            raise _busy(folder)


# Both

def _do(folder, task, work):
    """Finish something, and say so."""
    try:
        work()
    except OSError as error:
        raise OSError(f"{folder}: a process that was to replace this checkpoint was killed, and it can't be repaired "
                      f"({error.strerror}): {task}") from error
    say("checkpoint", f"{folder}: repaired; a process that was to replace this checkpoint was killed")


def _check_nothing_came(folder, older):
    """FileExistsError where a checkpoint came to a folder after `older` was all that was there."""
    if any(OUR_FILES.fullmatch(name) for name in set(os.listdir(folder)) - {file.name for file in older}):
        raise _overtaken(folder)


def _overtaken(folder):
    return FileExistsError(f"{folder} exists: another process wrote it meanwhile: choose another place, or replace it "
                           "with --overwrite")


def _busy(folder):
    return BlockingIOError(f"{folder}: another process is replacing this checkpoint: try again when it has ended")


def _leftovers(folder, name, kind):
    """
    The scratch folders in a folder, of the checkpoint `name` or of any; made by this user or by the folder's owner:
    what a stranger puts into /tmp is not to be moved about.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.{kind}-{'[0-9a-f]' * 8}"
    if not folder.is_dir():
        return []
    owners = os.geteuid(), folder.stat().st_uid
    return sorted(path for path in folder.glob(pattern)
                  if path.is_dir() and not path.is_symlink() and path.stat().st_uid in owners)


def _remove(scratch):
    with _lock_of(scratch) as is_free:
        if is_free:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder):
    """Hold the lock of a folder of one's own. It goes with the folder when that is renamed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock_of(scratch):
    """Whether the process that made a scratch folder is gone, and this one has its lock; else it is left alone."""
    try:
        descriptor = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:  # another one has just repaired it
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield scratch.exists()
    finally:
        os.close(descriptor)
