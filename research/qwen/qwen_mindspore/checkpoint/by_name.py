"""From what a user calls a model, a hub's name or a folder, to a MindSpore checkpoint: fetched and converted, once."""
import shutil
from dataclasses import dataclass
from pathlib import Path

from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.checkpoint.files import HUGGING_FACE, MINDSPORE, Checkpoint, checkpoint_files, read_config
from qwen_mindspore.checkpoint.hub import HUBS, RELEASED, Unreachable, fetch, is_hub_name, look_up
from qwen_mindspore.checkpoint.model_cache import Entry, find_entry, folder_digest, hub_entry, local_entry
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.common.progress import say
from qwen_mindspore.families import family_of

__all__ = ["DEFAULT_HUB", "Found", "find_checkpoint", "is_hugging_face"]

NAME = "model"
DEFAULT_HUB = "huggingface"


@dataclass(frozen=True)
class Found:
    """
    A model that was found.

    Attributes:
        checkpoint (Path): Where its weights are; config.json is beside them.
        entry (Entry): Its place in the cache.
    """

    checkpoint: Path
    entry: Entry


def find_checkpoint(model, revision=None, hub=None, convert=True):
    """
    The checkpoint of a model, MindSpore's.

    What is there under this name, a folder or a file, is taken; a folder of Hugging Face's is converted into the cache,
    again when its files have changed. Else it is a name of a hub, and the model is fetched into the cache and converted
    there. What the cache has of a name and a revision is used without asking the hub.

    A process that is killed at whatever moment leaves what it has fetched: the same call goes on there.

    Args:
        model (str): A hub's name, or the path of a folder or a file.
        revision (str): Of the hub: a branch, a tag or a commit.
        hub (str): A key of HUBS. Default: huggingface.
        convert (bool): Whether a folder of Hugging Face's is converted, or taken as it is.

    Returns:
        Found.

    Raises:
        ValueError, OSError: There is no such model, it can't be fetched, or it is no Qwen.
    """
    if not model:
        raise ValueError("--model: expected a name, like Qwen/Qwen-7B-Chat, or a folder, found nothing")
    path = Path(model).expanduser()
    repair(path)
    if path.exists():
        if revision or hub:
            raise ValueError(f"{model} is on this disk: --{'revision' if revision else 'hub'} goes with a hub's name; "
                             "if that is meant, move the folder away")
        return _from_disk(path, convert)
    if not is_hub_name(model):
        raise FileNotFoundError(f"{model}: no such folder, and no name of a hub's model, which is OWNER/NAME, like "
                                f"{_released(model)}")
    return _from_hub(hub or DEFAULT_HUB, model, revision)


def is_hugging_face(path):
    """
    Whether a checkpoint has Hugging Face's names.

    Args:
        path (Path): A folder, or a file.

    Raises:
        ValueError, OSError: It is no checkpoint of a Qwen, or config.json is not beside it.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing: a model is a folder with config.json beside the "
                                "weights; or give --config and --load_checkpoint")
    family = family_of(read_config(folder / "config.json"))
    patterns = (*MINDSPORE, *(pattern for pattern in HUGGING_FACE if pattern.endswith(".bin")))
    return f"{family.name('embedding', 'hf')}.weight" in Checkpoint(checkpoint_files(path, patterns)).tensors


def _from_disk(path, convert):
    entry = local_entry(path)
    if not convert:
        return Found(path, entry)
    if not is_hugging_face(path):
        entry.folder.mkdir(parents=True, exist_ok=True)
        entry.save()
        return Found(path, entry)
    if not path.is_dir():
        raise ValueError(f"{path}: a file of Hugging Face's checkpoint: name the folder that it is in")
    digest = folder_digest(path)
    with entry.locked():
        known = Entry.read(entry.folder)
        if not entry.is_converted or known is None or known.info.get("digest") != digest:
            entry.info["digest"] = None
            entry.save()
            _convert(path, entry)
            entry.info["digest"] = digest
            entry.save()
    entry.touch()
    return Found(entry.checkpoint, entry)


def _from_hub(hub, name, revision):
    entry = find_entry(hub, name, revision or HUBS[hub].default_revision)
    if entry is None or not entry.is_converted:
        entry = hub_entry(_look_up(hub, name, revision, entry))
        with entry.locked():
            if entry.is_converted:  # by another process, or as another revision
                entry.remember()
            else:
                entry.save()
                _fetch(entry)
                _convert(entry.download, entry)
    if entry.download.is_dir():  # or a process was killed before it got here
        shutil.rmtree(entry.download, ignore_errors=True)
    entry.touch()
    return Found(entry.checkpoint, entry)


def _look_up(hub, name, revision, entry):
    """The Repository; without a connection as it was when all of it was fetched, if so."""
    try:
        return look_up(hub, name, revision)
    except Unreachable:
        if entry is None or not entry.is_downloaded:
            raise
        return entry.repository


def _fetch(entry):
    try:
        fetch(entry.repository, entry.download)
    except (ValueError, PermissionError):
        if not any((entry.download / name).is_file() for name in entry.repository.weights):
            shutil.rmtree(entry.folder)  # it is no Qwen, or a gated one: nothing to keep
        raise


def _convert(source, entry):
    say(NAME, f"converting {entry.name}, once")
    convert_weight(source, entry.checkpoint, overwrite=True)


def _released(model):
    """A name of a hub that may be meant by one without an owner."""
    return next((name for name in RELEASED if name.partition("/")[2] == model), "Qwen/Qwen-7B-Chat")
