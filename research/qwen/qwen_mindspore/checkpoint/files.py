"""Checkpoints as files: finding them, what is in them, and whether that is what a config describes."""
import re
from pathlib import Path

from qwen_mindspore.checkpoint.formats import FLOATS, READERS
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.common.files import read_json
from qwen_mindspore.common.keys import read_config_json
from qwen_mindspore.families import family_of

__all__ = ["ANY", "HUGGING_FACE", "MINDSPORE", "Checkpoint", "check_tensors", "checkpoint_files", "read_config",
           "read_sidecars"]

SIDECARS = ("config.json", "generation_config.json", "qwen.tiktoken")

# What files of a checkpoint are called, the best suffix first. A Hugging Face folder may well have other .bin files.
MINDSPORE = ("*.safetensors", "*.ckpt")
HUGGING_FACE = ("model*.safetensors", "gptq_model*.safetensors", "pytorch_model*.bin", "gptq_model*.bin")
ANY = (*MINDSPORE, "pytorch_model*.bin")

SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")


class Checkpoint:
    """The tensors of one or more files of a checkpoint, known by their headers.

    Attributes:
        files: list of Path.
        tensors: {name: Stored(shape, dtype)}.

    Raises:
        ValueError: a file is damaged, or two files hold the same tensor.
    """

    def __init__(self, files):
        self.files, self.tensors, self._readers = files, {}, {}
        for file in files:
            reader = READERS[file.suffix](file)
            for name in reader.tensors.keys() & self.tensors.keys():
                raise ValueError(f"{name} is both in {self._readers[name].path} and in {file}: "
                                 "name the one checkpoint that is meant")
            self.tensors |= reader.tensors
            self._readers |= dict.fromkeys(reader.tensors, reader)

    @property
    def place(self):
        """The file, or the folder of the files."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        return self._readers[name].read(name, first, last)

    def array(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a numpy array, floats as float32."""
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
        FileNotFoundError: Nothing there, or a shard or a file that the index names is missing.
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
        return [path]
    for suffix, names in by_suffix.items():
        indexes = sorted(path.glob(f"*{suffix}.index.json"))
        if indexes:
            return _files_of_index(path, indexes)
        files = sorted({file for name in names for file in path.glob(name) if file.is_file()})
        if files:
            return _one_checkpoint(path, files)
    if all(pattern == f"*{suffix}" for suffix, (pattern, *_) in by_suffix.items()):
        raise FileNotFoundError(f"checkpoint {path}: no {' or '.join(by_suffix)} file in this folder")
    raise FileNotFoundError(f"{path}: no checkpoint here, expected {' or '.join(patterns)}")


def _files_of_index(folder, indexes):
    if len(indexes) > 1:
        raise ValueError(f"checkpoint {folder}: {len(indexes)} indexes, {_listed(indexes)}: keep the one of the "
                         "checkpoint that is meant in this folder")
    (index,) = indexes
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise ValueError(f"{index}: weight_map: expected the file of each tensor, found none: fetch the file again")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} names it: fetch the file")
        if file.suffix not in READERS:
            raise ValueError(f"{index}: weight_map: expected files of {', '.join(READERS)}, found {file.name}")
    return files


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
    """A config.json of a known family, its values as they are meant. Raises ValueError for another model's."""
    config = read_json(path)
    family_of(config, path)
    return read_config_json(config, path)


def check_tensors(checkpoint, tensors):
    """Check that `checkpoint` has every tensor of `tensors`, {name: names.Tensor}, in its shape and type.

    Returns:
        Sorted names of the tensors that are not in `tensors`.

    Raises:
        ValueError: names the first tensor that is missing or not as expected.
    """
    place = checkpoint.place
    missing = [name for name in tensors if name not in checkpoint.tensors]
    if missing:
        raise ValueError(f"{place}: {missing[0]} is missing ({len(missing)} of {len(tensors)} tensors are): "
                         "fetch the whole checkpoint, and the config.json that belongs to it")
    for name, tensor in tensors.items():
        stored = checkpoint.tensors[name]
        if stored.shape != tensor.shape:
            raise ValueError(f"{place}: {name} has shape {list(stored.shape)}, expected {list(tensor.shape)} "
                             "by config.json: is it the config.json of this checkpoint?")
        expected = FLOATS if tensor.dtype is None else (tensor.dtype,)
        if stored.dtype not in expected:
            raise ValueError(f"{place}: {name} has type {stored.dtype}, expected {', '.join(expected)} "
                             "by config.json: is it the config.json of this checkpoint?")
    return sorted(checkpoint.tensors.keys() - tensors.keys())


def read_sidecars(*folders):
    """{name: bytes} of config.json, generation_config.json and qwen.tiktoken; earlier folders come first."""
    sidecars = {}
    for name in SIDECARS:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path:
            sidecars[name] = path.read_bytes()
    return sidecars
