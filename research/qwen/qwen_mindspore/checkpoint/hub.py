"""
Fetching a model from a hub: Hugging Face's, through the package huggingface_hub, or ModelScope, through modelscope.

Only what a model is made of is fetched, into a folder: its weights, of which safetensors are preferred, what describes
them, and the vocabulary. Never code. What is no Qwen is refused before its weights are fetched.

What the packages do: they look the model up, send the user's token, and resume a file that was begun at the byte where
it ends; and they compare a file's length with what the server announced. What is done here besides: a connection that
breaks in the middle is taken up again, and every file is compared with the length and the digest that the hub has on
record for it, a sha256, or git's for small files; one that differs is fetched anew, once.
"""
import contextlib
import fnmatch
import hashlib
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from qwen_mindspore.checkpoint.files import HUGGING_FACE
from qwen_mindspore.checkpoint.gptq import read_settings
from qwen_mindspore.checkpoint.names import ms_to_hf
from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import check_disk, read_json, sha256
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import closest, readable_bytes
from qwen_mindspore.families import family_of

__all__ = ["HUBS", "RemoteFile", "Repository", "Unreachable", "fetch", "is_hub_name", "look_up"]

NAME = "model"  # what messages begin with
DESCRIPTIONS = ("config.json", "generation_config.json", "quantize_config.json", "qwen.tiktoken")
ATTEMPTS = 5  # to go on where a connection broke, without a new byte in between
PAUSE = 1.0  # seconds before each
SILENCE = 2.0  # seconds after which it is said what is waited for
PATIENCE = 30.0  # seconds until a hub that says nothing counts as out of reach
RELEASED = [f"Qwen/Qwen-{size}{kind}" for size in ("1_8B", "7B", "14B", "72B")
            for kind in ("", "-Chat", "-Chat-Int4", "-Chat-Int8")]


class Unreachable(ConnectionError):
    """The hub can't be asked: no connection, or it has been said to do without."""


@dataclass(frozen=True)
class RemoteFile:
    """
    What a hub has on record of a file.

    Attributes:
        size (int): Bytes.
        sha256, git_sha1 (str): Its digest, or that of git's blob with its content. None where the hub doesn't say.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Repository:
    """
    A model on a hub at one revision.

    Attributes:
        hub (str): A key of HUBS.
        name (str): OWNER/NAME.
        revision (str): As the user said it: a branch, a tag or a commit.
        commit (str): What that is at present.
        files (dict): Name -> RemoteFile, those that are fetched: DESCRIPTIONS, weights and their index.
    """

    hub: str
    name: str
    revision: str
    commit: str
    files: dict[str, RemoteFile]

    @property
    def weights(self):
        """The names of the files with weights."""
        return [name for name in self.files if any(fnmatch.fnmatch(name, pattern) for pattern in HUGGING_FACE)]


class HuggingFace:
    """huggingface.co, or what HF_ENDPOINT names. HF_TOKEN and HF_HUB_OFFLINE count as everywhere."""

    default_revision = "main"

    def __init__(self):
        # Xet's own protocol begins a file anew that was interrupted; over plain HTTP it is resumed.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors

        self.package = huggingface_hub
        self.endpoint = (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")

    def list_files(self, name, revision):
        """(commit, {name: RemoteFile}) of everything in a repository; see `look_up` for errors."""
        with self._one_line(name, revision), _saying(f"looking up {name} at {self.endpoint} ..."):
            info = self.package.HfApi(endpoint=self.endpoint).model_info(name, revision=revision, files_metadata=True,
                                                                         timeout=PATIENCE)
        return info.sha, {file.rfilename: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None,
                                                     None if file.lfs else file.blob_id) for file in info.siblings}

    def cached(self, name, revision, file):
        """The path of a file in huggingface_hub's own cache, where other programs may have put it, or None."""
        found = self.package.try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def list_cached(self, name, revision):
        """What `list_files` gives, of that cache and without a connection; None where it has no such model."""
        config = self.cached(name, revision, "config.json")
        if config is None:
            return None
        return config.parent.name, {path.name: RemoteFile(path.stat().st_size) for path in config.parent.iterdir()
                                    if path.is_file()}

    def download(self, repository, name, folder):
        """Fetch a file into a folder; resumes."""
        import requests

        failures, begun = 0, _bytes_in(folder)
        while True:
            try:
                with self._one_line(repository.name, repository.revision):
                    self.package.hf_hub_download(
                        repository.name, name, revision=repository.commit, local_dir=folder, endpoint=self.endpoint,
                        cache_dir=folder / ".none", library_name="qwen-mindspore")  # what is cached was looked at
                return
            except requests.exceptions.ChunkedEncodingError:  # huggingface_hub doesn't go on after this one
                before, begun = begun, _bytes_in(folder)
                failures = 0 if begun > before else failures + 1
                if failures == ATTEMPTS:
                    raise Unreachable(f"{repository.name}: {name}: the connection to {self.endpoint} breaks again and "
                                      "again; what was fetched is kept: the same command resumes") from None
                say(NAME, f"{name}: the connection broke, going on at {readable_bytes(begun)} of the whole")
                time.sleep(PAUSE)

    @contextlib.contextmanager
    def _one_line(self, name, revision):
        """Errors of huggingface_hub as one line that says what to do."""
        import requests

        if self.package.constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{name}: not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the model")
        try:
            yield
        except requests.exceptions.ChunkedEncodingError:
            raise
        except self.package.errors.HFValidationError as error:
            raise ValueError(f"{name}: no name of a model: {str(error).splitlines()[0]}") from None
        except (self.package.errors.LocalEntryNotFoundError, requests.exceptions.RequestException,
                ConnectionError) as error:
            raise self._explained(error, name, revision) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(f"{name}: {' '.join(str(error).split())}") from None  # of its check of sizes, several lines

    def _explained(self, error, name, revision):
        """What an error of huggingface_hub means, as an exception of one line."""
        errors, place = self.package.errors, f"{self.endpoint}/{name}"
        if isinstance(error, errors.LocalEntryNotFoundError):  # it would have taken the file from its own cache
            error = error.__cause__ or error
        if isinstance(error, errors.GatedRepoError):
            return PermissionError(f"{name} is gated: accept its terms on {place}, then log in with `hf auth login` or "
                                   "set HF_TOKEN")
        if isinstance(error, errors.RepositoryNotFoundError):
            return FileNotFoundError(f"{name}: {self.endpoint} has no such model, or a private one: {_advice(name)}log "
                                     "in with `hf auth login` or set HF_TOKEN")
        if isinstance(error, errors.RevisionNotFoundError):
            return FileNotFoundError(f"{name}: no revision {revision} there: {place}/commits lists what there is")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return PermissionError(f"{name}: {self.endpoint} refuses it ({status}): log in with `hf auth login` or set "
                                   "HF_TOKEN to a token that may read it")
        if isinstance(error, ValueError):  # requests' MissingSchema, InvalidURL and their like
            return ValueError(f"HF_ENDPOINT: {self.endpoint} is no URL of a hub: expected one like "
                              "https://huggingface.co, or nothing")
        reason, advice = ((type(error).__name__, "is this machine offline?") if status is None else
                          (f"it answers {status}", "try again later."))
        return Unreachable(f"{name}: {self.endpoint} can't be reached ({reason}): {advice} What was fetched is kept: "
                           "the same command resumes")


class ModelScope:
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names."""

    default_revision = "master"

    def __init__(self):
        import_extra("modelscope", "modelscope", "--hub modelscope")

    def list_files(self, name, revision):
        """See HuggingFace. ModelScope's commit is not asked for: a revision is kept as it was when it was fetched."""
        from modelscope_hub.api import HubApi  # what modelscope stands on; its own list has no digests

        with self._one_line(name, revision):
            files = HubApi().list_repo_files(name, "model", revision=revision)
        return revision, {file.path: RemoteFile(file.size, file.sha256 or None) for file in files}

    def cached(self, name, revision, file):
        """None: what modelscope's cache has is not looked for."""

    def list_cached(self, name, revision):
        """None, see `cached`."""

    def download(self, repository, name, folder):
        """See HuggingFace; modelscope goes on after a broken connection by itself."""
        from modelscope.hub.file_download import model_file_download

        with self._one_line(repository.name, repository.revision):
            model_file_download(repository.name, name, revision=repository.revision, local_dir=str(folder))

    @contextlib.contextmanager
    def _one_line(self, name, revision):
        """The package's errors, of many kinds in its many versions, as one line."""
        try:
            yield
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            response = getattr(error, "response", None)
            if getattr(response, "status_code", None) == 404 or "NotExist" in type(error).__name__:
                raise FileNotFoundError(f"{name}: ModelScope has no such model, or no revision {revision} of it: "
                                        f"{_advice(name)}see https://modelscope.cn/models/{name}") from None
            raise Unreachable(f"{name}: not fetched from ModelScope ({type(error).__name__}: {reason}); what was "
                              "fetched is kept: the same command resumes") from None


HUBS = {"huggingface": HuggingFace, "modelscope": ModelScope}


def is_hub_name(text):
    """Whether a text may be the name of a model on a hub: OWNER/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text, re.ASCII) is not None


def look_up(hub, name, revision=None):
    """
    What a hub has of a model.

    Args:
        hub (str): A key of HUBS.
        name (str): OWNER/NAME.
        revision (str): A branch, a tag or a commit. Default: the hub's own, main or master.

    Returns:
        Repository.

    Raises:
        FileNotFoundError: No such model or revision, or no weights in it.
        PermissionError: The model is gated, or the token may not read it.
        Unreachable: The hub does not answer.
        ValueError: The hub's package is not installed.
    """
    client = HUBS[hub]()
    revision = revision or client.default_revision
    try:
        commit, files = client.list_files(name, revision)
    except Unreachable:
        found = client.list_cached(name, revision)
        if found is None or not _weights_in(found[1])[1]:
            raise
        commit, files = found
    files = {file: remote for file, remote in files.items() if "/" not in file}  # folders are none of the model's
    return Repository(hub, name, revision, commit, {file: files[file] for file in _chosen(name, files)})


def _chosen(name, files):
    """The names of the files to fetch, what describes the model first; FileNotFoundError where there are no weights."""
    suffix, weights = _weights_in(files)
    if not weights:
        raise FileNotFoundError(f"{name}: no weights in this repository, expected {' or '.join(HUGGING_FACE)}, found "
                                f"{', '.join(sorted(files)[:5]) or 'nothing'}: name one with a whole model")
    if "config.json" not in files:
        raise FileNotFoundError(f"{name}: no config.json in this repository: name one with a whole model")
    return [*(file for file in DESCRIPTIONS if file in files), *fnmatch.filter(sorted(files), f"*{suffix}.index.json"),
            *weights]


def _weights_in(files):
    """(suffix, names) of the weights among files, the best suffix that is there."""
    for suffix in (".safetensors", ".bin"):
        patterns = [pattern for pattern in HUGGING_FACE if pattern.endswith(suffix)]
        weights = sorted(file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in patterns))
        if weights:
            return suffix, weights
    return None, []


def fetch(repository, folder):
    """
    Fetch a model, but for what is in the folder already, or in huggingface_hub's cache.

    What describes the model comes first and is looked at; then the size is told, the disk is looked at, for the weights
    and for the copy that they will be converted to, and the weights come.

    Args:
        repository (Repository): See `look_up`.
        folder (Path): Where its files are put.

    Raises:
        ValueError: It is no Qwen, it is quantized in a way that is not read here, or a file is not what the hub has on
            record.
        OSError: The disk is full, or see `look_up`.
    """
    client, weights = HUBS[repository.hub](), set(repository.weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name in repository.files:
        cached = client.cached(repository.name, repository.commit, name)
        if cached and not (folder / name).is_file():
            (folder / name).unlink(missing_ok=True)  # a link to what is gone
            (folder / name).symlink_to(cached)
    for name in (name for name in repository.files if name not in weights):
        _fetch_file(client, repository, name, folder)
    check_description(folder, repository.name)
    total = sum(repository.files[name].size for name in weights)
    missing = max(0, total - sum(path.stat().st_size for path in _files_in(folder) if _is_weight(path, weights)))
    if missing:
        begun = f", of which {readable_bytes(missing)} are still missing" if missing < total else ""
        say(NAME, f"fetching {repository.name}, revision {repository.revision}: {readable_bytes(total)} of weights in "
                  f"{len(weights)} file{'s' * (len(weights) > 1)}{begun}; the converted copy takes as much, and then "
                  "the download is removed")
    check_disk(folder, missing + total)
    for name in sorted(weights):
        _fetch_file(client, repository, name, folder)


def check_description(folder, name):
    """ValueError where what was fetched does not describe a Qwen that can be converted."""
    try:
        config = read_json(folder / "config.json")
        family_of(config)
        read_settings(folder, config)
        ms_to_hf(config)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).replace(f'{folder}/', '').replace(f'{folder}: ', '')}") from None


def _fetch_file(client, repository, name, folder):
    """A file, unless it is there, whole."""
    path, problem = folder / name, None
    for _ in range(2 + path.is_file()):
        if not path.is_file():
            if problem:
                say(NAME, f"{name}: {problem}; fetching it anew")
            client.download(repository, name, folder)
        problem = _problem(path, repository.files[name])
        if problem is None:
            return
        path.unlink()
    raise ValueError(f"{repository.name}: {name}: {problem}, though it was fetched twice: try again later, or another "
                     f"--hub ({', '.join(HUBS)})")


def _problem(path, expected):
    """What is wrong with a file, or None."""
    size = path.stat().st_size
    if size != expected.size:
        return f"it has {size} bytes, the hub has {expected.size} on record"
    if expected.sha256 and sha256(path) != expected.sha256:
        return f"its sha256 is not {expected.sha256}, which the hub has on record"
    if expected.git_sha1 and _git_sha1(path) != expected.git_sha1:
        return f"its digest is not {expected.git_sha1}, which the hub has on record"
    return None


def _git_sha1(path):
    """What git calls a file with this content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def _saying(text):
    """Say what is waited for, where it takes long."""
    timer = threading.Timer(SILENCE, say, (NAME, text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _files_in(folder):
    """Every file in a folder and those in it."""
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _bytes_in(folder):
    """What is in a folder, files that are not whole yet included."""
    return sum(path.stat().st_size for path in _files_in(folder))


def _is_weight(path, weights):
    """Whether a file is one of the weights, or what there is of one: both packages call that NAME.incomplete."""
    return path.name in weights or path.suffix == ".incomplete"


def _advice(name):
    """A released model that may be meant."""
    near = closest(name, RELEASED)
    return f"did you mean {near}? Or " if near else "check the name, or "
