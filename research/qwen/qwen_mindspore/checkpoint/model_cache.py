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
            commit, and files (name -> RemoteFile as a dict) of a model from a hub; digest of a local folder that was
            converted, None while it is.
    """

    def __init__(self, folder, info):
        self.folder, self.info = folder, info

    @classmethod
    def read(cls, folder):
        """The Entry in a folder, or None."""
        file = folder / "entry.json"
        return cls(folder, read_json(file)) if file.is_file() else None

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
        """Whether the checkpoint is there."""
        return (self.checkpoint / INDEX).is_file()

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

    def touch(self):
        """The model is used now."""
        with contextlib.suppress(OSError):  # somebody else's cache
            os.utime(self.folder / "entry.json")

    @property
    def last_used(self):
        """Seconds since the epoch."""
        return (self.folder / "entry.json").stat().st_mtime

    @property
    def size(self):
        """Bytes of all its files."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def what(self):
        """What there is of it, in words."""
        if self.is_converted:
            return "converted"
        if self.info["hub"] == LOCAL:
            return "unfinished" if "digest" in self.info else "settings"
        total = sum(file["size"] for file in self.info["files"].values())
        here = sum(path.stat().st_size for path in self.download.rglob("*") if path.is_file())
        return f"download, {min(100, 100 * here // max(total, 1))} %"

    @contextlib.contextmanager
    def locked(self, wait=True):
        """
        Hold the lock of the entry; whoever comes second waits, and is told so, or with `wait=False` gets a
        BlockingIOError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise BlockingIOError(f"{self.name}: another process is fetching or converting it: try again when "
                                          "it has ended") from None
                say("model", f"{self.name}: another process is fetching or converting it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


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
    found = [entry for entry in _entries_in(_hub_folder(hub, name)) if revision in
             (entry.info["revision"], entry.info["commit"])]
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
    return [Entry.read(file.parent) for file in sorted(folder.glob("[!.]*/entry.json"))]
