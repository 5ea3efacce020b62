"""Checkpoints as files: finding them, what is in them, and whether that is what a config describes."""
import math
import re
from pathlib import Path

from qwen_mindspore.checkpoint import advice
from qwen_mindspore.checkpoint.first_release import in_todays_words
from qwen_mindspore.checkpoint.formats import FLOATS, READERS
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.checkpoint.stored import damaged
from qwen_mindspore.common.files import check_pointer, read_json
from qwen_mindspore.common.keys import read_config_json
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import shown
from qwen_mindspore.families import FAMILIES

__all__ = ["ANY", "HUGGING_FACE", "MINDSPORE", "Checkpoint", "check_tensors", "check_tied_heads", "checkpoint_files",
           "how_to_complete", "read_config", "read_sidecars"]

SIDECARS = ("config.json", "generation_config.json", "qwen.tiktoken")

# What files of a checkpoint are called, the best suffix first. A Hugging Face folder may well have other .bin files.
MINDSPORE = ("*.safetensors", "*.ckpt")
HUGGING_FACE = ("model*.safetensors", "gptq_model*.safetensors", "pytorch_model*.bin", "gptq_model*.bin")
ANY = (*MINDSPORE, "pytorch_model*.bin")

SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})(\.\w+)")
CHUNK_BYTES = 64 * 2**20


class Checkpoint:
    """The tensors of one or more files of a checkpoint, known by their headers.

    Where a wrapper around the model has put a prefix before all names, as "module.", they are without it here.

    Attributes:
        files: list of Path.
        tensors: {name: Stored(shape, dtype)}.

    Raises:
        ValueError: a file is damaged or a git-lfs pointer, two files hold the same tensor, or a name is no text.
    """

    def __init__(self, files):
        self.files, self.tensors, self._readers = files, {}, {}
        for file in files:
            check_pointer(file)
            reader = READERS[file.suffix](file)
            for name, stored in reader.tensors.items():
                if not name.isprintable() or not stored.dtype.isprintable():
                    raise ValueError(damaged(file, f"{shown(name)} of type {shown(stored.dtype)} is no tensor"))
            for name in sorted(reader.tensors.keys() & self.tensors.keys()):
                raise ValueError(f"{name} is both in {self._readers[name].path} and in {file}: "
                                 "name the one checkpoint that is meant")
            self.tensors |= reader.tensors
            self._readers |= dict.fromkeys(reader.tensors, reader)
        self._names = self._unwrap()

    def _unwrap(self):
        """Take a wrapper's prefix from the names; returns {name without it: name in the file}."""
        prefix = advice.wrapper_of(self.tensors)
        names = {name.removeprefix(prefix): name for name in self.tensors}
        if not prefix or len(names) < len(self.tensors):
            return {name: name for name in self.tensors}
        if advice.of_names(names, "hf") != advice.LORA:
            say("checkpoint", f"{self.place}: the names of its tensors are read without {prefix!r}")
        self.tensors = {ours: self.tensors[name] for ours, name in names.items()}
        return names

    @property
    def place(self):
        """The file, or the folder of the files."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        name = self._names[name]
        return self._readers[name].read(name, first, last)

    def array(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a numpy array, floats as float32."""
        name = self._names[name]
        return self._readers[name].array(name, first, last)


def checkpoint_files(path, patterns=MINDSPORE):
    """
    The files of a checkpoint: the one way to open it, for whoever reads one.

    A file is itself. A folder goes by its index, a `*.safetensors.index.json` or the like, and what the index does not
    name is not read. Without one the folder must hold exactly one checkpoint: one file, or shards
    `NAME-00001-of-00003.safetensors` of which none is missing. Of several suffixes the first that is there counts.

    Args:
        path (str | Path): A file or a folder.
        patterns (tuple[str]): What the files are called; those of one suffix belong together. A file that is named
            itself may have any name.

    Returns:
        list[Path], sorted by name.

    Raises:
        FileNotFoundError: Nothing there, or a shard or a file that the index names is missing. Where the folder is
            another kind of folder that is known (a hub's cache, an adapter), the message says so.
        ValueError: A file of another kind, more than one checkpoint in the folder, or an index that is none.
        OSError: See `checkpoint.replace.repair`.
    """
    path = Path(path)
    repair(path)
    by_suffix = {}
    for pattern in patterns:
        by_suffix.setdefault(Path(pattern).suffix, []).append(pattern)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: no such file or folder")
    if path.is_file():
        if path.suffix not in by_suffix:
            kinds = " or ".join(sorted(by_suffix))
            raise ValueError(f"checkpoint {path}: expected a {kinds} file, or a folder of them")
        if path.name.startswith("adapter_model."):
            raise ValueError(f"checkpoint {path}: {advice.LORA}")
        return [path]
    for suffix, names in by_suffix.items():
        indexes = sorted(path.glob(f"*{suffix}.index.json"))
        if indexes:
            return _files_of_index(path, indexes)
        files = sorted({file for name in names for file in path.glob(name) if file.is_file()})
        if files and all(file.name.startswith("adapter_model.") for file in files):
            raise ValueError(f"checkpoint {path}: {advice.LORA}")
        if files:
            return _one_checkpoint(path, files)
    what = advice.of_folder(path)
    what = f": {what}" if what else ""
    if all(pattern == f"*{suffix}" for suffix, (pattern, *_) in by_suffix.items()):
        raise FileNotFoundError(f"checkpoint {path}: no {' or '.join(by_suffix)} file in this folder{what}")
    raise FileNotFoundError(f"{path}: no checkpoint here, expected {' or '.join(patterns)}{what}")


def _files_of_index(folder, indexes):
    if len(indexes) > 1:
        raise ValueError(f"checkpoint {folder}: {len(indexes)} indexes, {_listed(indexes)}: keep the one of the "
                         "checkpoint that is meant in this folder")
    (index,) = indexes
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map: expected the file of each tensor, found "
                         f"{shown(weight_map) if weight_map else 'none'}: fetch the file again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.isprintable() or not _is_inside(name):
            raise ValueError(f"{index}: weight_map: expected the file of each tensor in this folder, found "
                             f"{shown(name)} for {shown(tensor)}: fetch the file again")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.suffix not in READERS:
            raise ValueError(f"{index}: weight_map: expected files of {', '.join(READERS)}, found {file.name}")
    missing = [file for file in files if not file.is_file()]
    if missing:
        others = f" ({len(missing)} of {len(files)} files are missing)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]} is missing, but {index.name} names it{others}: fetch the file")
    return files


def _is_inside(name):
    """Whether the name of a file leads nowhere out of its folder."""
    path = Path(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _one_checkpoint(folder, files):
    """The files of a folder without an index, which must be one checkpoint, and all of it."""
    shards = [SHARD.fullmatch(file.name) for file in files]
    sets = {(shard and (shard[1], int(shard[3]), shard[4])) or file.name for file, shard in zip(files, shards)}
    if len(sets) > 1:
        raise ValueError(f"checkpoint {folder}: more than one checkpoint in this folder, {_listed(files)}: name the "
                         "file that is meant, or keep one checkpoint in a folder")
    if shards[0]:
        count, found = int(shards[0][3]), {int(shard[2]) for shard in shards}
        missing = [number for number in range(1, count + 1) if number not in found]
        if missing:
            name = f"{shards[0][1]}-{missing[0]:0{len(shards[0][2])}}-of-{shards[0][3]}{shards[0][4]}"
            raise FileNotFoundError(f"{folder / name} is missing ({len(missing)} of {count} shards are): fetch the "
                                    "whole checkpoint")
        if len(files) > count:
            raise ValueError(f"checkpoint {folder}: {len(files)} files for {count} shards, {_listed(files)}: keep one "
                             "checkpoint in a folder")
    return files


def _listed(files):
    names = [file.name for file in files]
    return ", ".join(names if len(names) <= 6 else [*names[:5], f"... ({len(names)} files)"])


def read_config(path):
    """
    A config.json of a known family, its values as they are meant, with today's keys where it is of the first release.

    Raises:
        FileNotFoundError: No such file; the message says what the folder is, where that is known.
        NotADirectoryError: It is said to be in what is no folder.
        ValueError: Not JSON, another model's, or see `first_release.in_todays_words` and `keys.read_config_json`.
    """
    path = Path(path)
    if not path.is_file() and (what := advice.of_folder(path.parent)):
        raise FileNotFoundError(f"{path} is missing: {what}")
    if path.parent.is_file():
        raise NotADirectoryError(f"{path.parent}: this is a file: give the folder that it is in, with its {path.name}")
    config = read_json(path)
    advice.check_model(config, path)
    return read_config_json(in_todays_words(config, path), path)


def check_tensors(checkpoint, tensors):
    """Check that `checkpoint` has every tensor of `tensors`, {name: names.Tensor}, in its shape and type.

    Returns:
        Sorted names of the tensors that are not in `tensors`; without that of a head which is the embedding again.

    Raises:
        ValueError: names the first tensor that is missing or not as expected, or see `check_tied_heads`.
    """
    place = checkpoint.place
    missing = [name for name in tensors if name not in checkpoint.tensors]
    if missing:
        raise ValueError(f"{place}: {missing[0]} is missing ({len(missing)} of {len(tensors)} tensors are): "
                         f"{how_to_complete(missing, tensors, checkpoint.tensors)}")
    for name, tensor in tensors.items():
        stored = checkpoint.tensors[name]
        if stored.shape != tensor.shape:
            raise ValueError(f"{place}: {name} has shape {list(stored.shape)}, expected {list(tensor.shape)} "
                             "by config.json: is it the config.json of this checkpoint?")
        expected = FLOATS if tensor.dtype is None else (tensor.dtype,)
        if stored.dtype not in expected:
            raise ValueError(f"{place}: {name} has type {stored.dtype}, expected {', '.join(expected)} "
                             "by config.json: is it the config.json of this checkpoint?")
    tied = check_tied_heads(checkpoint, tensors)
    return sorted(checkpoint.tensors.keys() - tensors.keys() - tied)


def how_to_complete(missing, tensors, found):
    """
    What to do about tensors that are missing, as the end of a message.

    Args:
        missing (list[str]): Their names.
        tensors, found: All the names that are needed, and all that are there.
    """
    side = next((side for family in FAMILIES.values() for side in ("hf", "ms")
                 if any(name.startswith(family.prefix(side, 0)) for name in tensors)), "hf")
    if what := advice.of_names(found, side):
        return what
    if len(missing) == 1 and missing[0] in dict(_heads()):
        return ('fetch the whole checkpoint; or, if the head of this model is the embedding, set "tie_word_embeddings" '
                "to true in its config")
    return "fetch the whole checkpoint, and the config.json that belongs to it"


def check_tied_heads(checkpoint, tensors):
    """
    Check that a head in a checkpoint is the embedding, where a model ties the two.

    Args:
        checkpoint: A Checkpoint, or whatever has its `tensors`, `read` and `place`.
        tensors: The names that the model has; the head is none of them where it is tied.

    Returns:
        set of the names of heads that are the embedding again.

    Raises:
        ValueError: They differ, so that the config describes another model.
    """
    tied = {(head, embedding) for head, embedding in _heads()
            if head in checkpoint.tensors and head not in tensors and embedding in tensors}
    for head, embedding in tied:
        if not _are_equal(checkpoint, head, embedding):
            raise ValueError(f"{checkpoint.place}: {head} is not {embedding}, but the config ties the two: set "
                             '"tie_word_embeddings" to false in it')
    return {head for head, _ in tied}


def _heads():
    """(name of the head's weight, name of the embedding's) on either side, of every family."""
    for family in FAMILIES.values():
        head, embedding = family.modules["head"], family.modules["embedding"]
        yield f"{head.hf}.weight", f"{embedding.hf}.weight"
        yield f"{head.ms}.{head.ms_weight}", f"{embedding.ms}.{embedding.ms_weight}"


def _are_equal(checkpoint, left, right):
    """Whether two tensors hold the same numbers, in whatever type of floats."""
    ours, theirs = checkpoint.tensors[left], checkpoint.tensors[right]
    if ours.shape != theirs.shape or not {ours.dtype, theirs.dtype} <= {*FLOATS} or not ours.shape:
        return False
    step = max(1, CHUNK_BYTES // max(1, 4 * math.prod(ours.shape[1:])))
    for first in range(0, ours.shape[0], step):
        rows = first, min(first + step, ours.shape[0])
        if not checkpoint.read(left, *rows).float().equal(checkpoint.read(right, *rows).float()):
            return False
    return True


def read_sidecars(*folders):
    """
    {name: bytes} of config.json, generation_config.json and qwen.tiktoken; earlier folders come first. ValueError for a
    git-lfs pointer, which is none of them.
    """
    sidecars = {}
    for name in SIDECARS:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path:
            check_pointer(path)
            sidecars[name] = path.read_bytes()
    return sidecars
