"""Checkpoints as files: finding them, what is in them, and whether that is what a config describes."""
from pathlib import Path

from qwen_mindspore.checkpoint.formats import FLOATS, READERS
from qwen_mindspore.common.files import read_json

__all__ = ["Checkpoint", "check_tensors", "find_files", "read_config", "read_sidecars"]

SIDECARS = ("config.json", "generation_config.json", "qwen.tiktoken")


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


def find_files(folder, patterns):
    """The checkpoint files of `folder`, by the first pattern that fits; with an index, those it names.

    Raises:
        FileNotFoundError: there are none, or one that the index names is not there.
    """
    for pattern in patterns:
        index = next(folder.glob(f"*{Path(pattern).suffix}.index.json"), None)
        files = _files_of_index(index) if index else sorted(folder.glob(pattern))
        if files:
            return files
    raise FileNotFoundError(f"{folder}: no checkpoint here, expected {' or '.join(patterns)}")


def _files_of_index(index):
    weight_map = read_json(index).get("weight_map", {})
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} names it: fetch the file")
    return files


def read_config(path):
    """A config.json of Qwen. Raises ValueError for another model's."""
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type != "qwen":
        raise ValueError(f"{path}: model_type is {model_type!r}, expected 'qwen', the first generation")
    return config


def check_tensors(checkpoint, tensors):
    """Check that `checkpoint` has every tensor of `tensors`, {name: name_map.Tensor}, in its shape and type.

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
