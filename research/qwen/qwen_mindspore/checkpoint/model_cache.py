"""
The models in the user's cache: those that were fetched by name, and the copies of Hugging Face folders.

Each has a folder, `CACHE/hub/HUB/OWNER--NAME/COMMIT` or `CACHE/hub/local/NAME-DIGEST`, with

    entry.json      what it is; when it was last touched is when the model was last used
    download/       what was fetched, until it is converted
    NAME/           the MindSpore checkpoint: it is whole, or not there
    config.yaml     what the model is built by
    lock            held by the process that fetches or converts
"""
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from dataclasses import asdict
from pathlib import Path

from qwen_mindspore.checkpoint.hub import RemoteFile, Repository
from qwen_mindspore.common.files import cache_folder, read_json, write_json
from qwen_mindspore.common.progress import say

__all__ = ["LOCAL", "Entry", "entries", "find_entry", "folder_digest", "hub_entry", "local_entry", "remove"]

LOCAL = "local"
INDEX = "model.safetensors.index.json"
REMOVED = ".removed-"


class Entry:
    """
    A model in the cache.

    Args:
        folder (Path): Its folder.
        info (dict): What entry.json says, or is to say: hub, name (that of a hub, or the path of a folder), revision,
            commit, and files (name -> RemoteFile as a dict) of a model from a hub, and aliases, the other revisions
            that were found to be that commit; digest of a local folder that was converted, None while it is.
        is_damaged (bool): entry.json says nothing of use, and `info` is what the folder's place says.
    """

    def __init__(self, folder, info, is_damaged=False):
        self.folder, self.info, self.is_damaged = folder, info, is_damaged

    @classmethod
    def read(cls, folder):
        """The Entry in a folder, or None. One that is damaged can be listed and deleted, and is written anew."""
        try:
            info = read_json(folder / "entry.json")
            _check_info(info)
            return cls(folder, info)
        except FileNotFoundError:  # or it was deleted just now
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(folder, _info_by_place(folder), is_damaged=True)

    @property
    def name(self):
        """OWNER/NAME, or a path."""
        return self.info["name"]

    @property
    def checkpoint(self):
        """Where the converted model is, or will be."""
        return self.folder / Path(self.name).name

    @property
    def download(self):
        """Where the files of the hub are put."""
        return self.folder / "download"

    @property
    def is_converted(self):
        """Whether the checkpoint is there, with every file that its index names."""
        try:
            files = set(read_json(self.checkpoint / INDEX).get("weight_map", {}).values())
            return all((self.checkpoint / name).is_file() for name in files)
        except (OSError, ValueError, TypeError, AttributeError):
            return False

    @property
    def revisions(self):
        """Everything that the user may call its revision."""
        return [self.info.get("revision"), *self.info.get("aliases", []), self.info.get("commit")]

    @property
    def repository(self):
        """The Repository that it was, or is being, fetched from."""
        files = {name: RemoteFile(**file) for name, file in self.info["files"].items()}
        return Repository(self.info["hub"], self.name, self.info["revision"], self.info["commit"], files)

    @property
    def is_downloaded(self):
        """Whether every file is there; files come to their names when they are whole."""
        return all((self.download / name).is_file() for name in self.info["files"])

    def save(self):
        """Write entry.json."""
        write_json(self.folder / "entry.json", self.info)

    def remember(self):
        """Note that the revision, of a model that is there, is this commit: it need not be looked up again."""
        known = Entry.read(self.folder)
        if known is None or known.is_damaged:
            self.save()
        elif self.info["revision"] not in known.revisions:
            known.info["aliases"] = [*known.info.get("aliases", []), self.info["revision"]]
            known.save()

    def touch(self):
        """The model is used now."""
        with contextlib.suppress(OSError):  # somebody else's cache
            os.utime(self.folder / "entry.json")

    @property
    def last_used(self):
        """Seconds since the epoch."""
        try:
            return (self.folder / "entry.json").stat().st_mtime
        except OSError:  # it was deleted just now
            return 0

    @property
    def size(self):
        """Bytes of all its files."""
        return _bytes_in(self.folder)

    @property
    def what(self):
        """What there is of it, in words."""
        if self.is_damaged or ((self.checkpoint / INDEX).exists() and not self.is_converted):
            return "damaged"
        if self.is_converted:
            return "converted"
        if self.info["hub"] == LOCAL:
            return "unfinished" if "digest" in self.info else "settings"
        total = sum(file["size"] for file in self.info["files"].values())
        here = _bytes_in(self.download, follow=True)
        return f"download, {min(100, 100 * here // max(total, 1))} %"

    @contextlib.contextmanager
    def locked(self, wait=True):
        """
        Hold the lock of the entry; whoever comes second waits, and is told so, or with `wait=False` gets a
        BlockingIOError.
        """
        with self._lock(wait):
            yield

    def _lock(self, wait):
        """The open file that is the lock, held. One that was deleted while we waited for it is none any more."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                lock = stack.enter_context(open(self.folder / "lock", "w", encoding="utf-8"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        raise BlockingIOError(f"{self.name}: another process is fetching or converting it: try again "
                                              "when it has ended") from None
                    say("model", f"{self.name}: another process is fetching or converting it; waiting")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.fstat(lock.fileno()), os.stat(self.folder / "lock")):
                        stack.pop_all()
                        return lock


def hub_entry(repository):
    """The Entry of a Repository, there or not."""
    commit = repository.commit.replace("/", "--").lstrip(".") or "-"  # a branch, on ModelScope
    folder = _hub_folder(repository.hub, repository.name) / commit
    info = {"hub": repository.hub, "name": repository.name, "revision": repository.revision,
            "commit": repository.commit, "files": {name: asdict(file) for name, file in repository.files.items()}}
    return Entry(folder, info)


def local_entry(path):
    """The Entry of a local folder or file, there or not."""
    path = Path(path).resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Entry(cache_folder("hub", LOCAL) / f"{path.name}-{digest}", {"hub": LOCAL, "name": str(path)})


def folder_digest(folder):
    """A digest of the names, sizes and times of a folder's files, which a change of them makes another one."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in Path(folder).iterdir())
    return hashlib.sha256(repr((str(Path(folder).resolve()), files)).encode()).hexdigest()[:8]


def find_entry(hub, name, revision):
    """The Entry of a model that was fetched, or begun to be, as that revision, or whose commit that is; or None."""
    found = [entry for entry in _entries_in(_hub_folder(hub, name))
             if revision in entry.revisions and not entry.is_damaged]
    # Where a branch has moved while a download was interrupted there are two: what can be used, then the latest.
    return max(found, key=lambda entry: (entry.is_converted, entry.last_used), default=None)


def entries():
    """Every Entry, the one that was used last first."""
    folders = [*cache_folder("hub").glob("*/*--*"), cache_folder("hub", LOCAL)]
    found = [entry for folder in folders for entry in _entries_in(folder)]
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def remove(entry):
    """
    Delete an Entry with all that is in it.

    Raises:
        BlockingIOError: Another process is fetching or converting it.
    """
    with entry.locked(wait=False):
        # Under another name first: what is half deleted is no model.
        gone = entry.folder.with_name(f"{REMOVED}{secrets.token_hex(4)}")
        entry.folder.rename(gone)
    for leftover in gone.parent.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover)
    with contextlib.suppress(OSError):  # others are in there
        gone.parent.rmdir()


def _hub_folder(hub, name):
    return cache_folder("hub", hub, name.replace("/", "--"))


def _entries_in(folder):
    found = [Entry.read(file.parent) for file in sorted(folder.glob("[!.]*/entry.json"))]
    return [entry for entry in found if entry]


def _check_info(info):
    """An error of some kind where entry.json is not as `Entry.save` writes it."""
    texts = [info["hub"], info["name"]]
    if info["hub"] != LOCAL:
        texts += [info["revision"], info["commit"], *info.get("aliases", [])]
        for file in info["files"].values():
            texts += [] if isinstance(RemoteFile(**file).size, int) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("expected texts")


def _info_by_place(folder):
    """What can be said of an entry whose entry.json is damaged: see `hub_entry` and `local_entry`."""
    if folder.parent.name == LOCAL:
        return {"hub": LOCAL, "name": str(folder)}
    return {"hub": folder.parent.parent.name, "name": folder.parent.name.replace("--", "/", 1),
            "revision": folder.name, "commit": folder.name, "files": {}}


def _bytes_in(folder, follow=False):
    """Bytes of the files in a folder, of which another process may rename or delete some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.stat() if follow else path.lstat()
            total += status.st_size if not stat.S_ISDIR(status.st_mode) else 0
    return total
