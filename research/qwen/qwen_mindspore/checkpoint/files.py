"""What the converters share: find and check a checkpoint, write one whole or not at all, run as a command."""
import contextlib
import errno
import functools
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from qwen_mindspore.checkpoint.formats import (
    FLOATS,
    ITEM_SIZE,
    READERS,
    Stored,
    write_ckpt,
    write_safetensors,
)

CHUNK_BYTES = 64 * 2**20
SHARD_BYTES = 2 * 10**9
SIDECARS = ("config.json", "generation_config.json", "qwen.tiktoken")
OUR_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|param_name_map\.json")


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


def read_json(path):
    """The dict in a JSON file. Raises ValueError or FileNotFoundError with the path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the model's {path.name} is needed")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error}): fetch the file again") from error


def read_config(path):
    """A config.json of Qwen. Raises ValueError for another model's."""
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type != "qwen":
        raise ValueError(f"{path}: model_type is {model_type!r}, expected 'qwen', the first generation")
    return config


def to_json(settings):
    """The bytes of a JSON file."""
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


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


def save(checkpoint, tensors, output, sidecars, dtype=None, overwrite=False, layout="ms"):
    """Write a checkpoint and the files that travel along, whole or not at all.

    Args:
        checkpoint: the Checkpoint that is read.
        tensors: {name: name_map.Tensor}, what is written and what it is made of.
        output: Path; one file if it ends in .ckpt or .safetensors, else a folder of shards.
        sidecars: {name: bytes}, written beside the file or into the folder.
        dtype: one of FLOATS, or None for the type each tensor is stored in; a quantised linear's tensors keep theirs.
        overwrite: replace an older checkpoint, and other sidecars, at the same place.
        layout: "ms" or "pt", for MindSpore or for Hugging Face transformers.

    Returns:
        `output`.

    Raises:
        ValueError: the tensors cannot be written in this type, or `output` is being read.
        OSError: something is in the way, or the disk is full.
    """
    one_file = output.suffix in (".ckpt", ".safetensors")
    folder = output.parent if one_file else output
    floats = {name for name, tensor in tensors.items() if tensor.dtype is None and not name.endswith(".scales")}
    stored = {name: Stored(tensor.shape, dtype if dtype and name in floats else _stored_dtype(checkpoint, tensor))
              for name, tensor in tensors.items()}
    found = {checkpoint.tensors[piece.name].dtype for name in floats for piece in tensors[name].pieces}
    if dtype and found != {dtype}:
        sidecars = {**sidecars, "config.json": _with_dtype(sidecars["config.json"], dtype)}
    in_the_way = check_output(checkpoint, output, sidecars, overwrite)
    check_disk(folder, _total(stored))

    files = {output.name: stored} if one_file else _shards(stored, layout)
    with _all_or_nothing(folder, in_the_way) as scratch, _progress(_total(stored), output.name) as bar:
        for name, content in sidecars.items():
            (scratch / name).write_bytes(content)
        if not one_file and (layout == "ms" or len(files) > 1):
            _write_index(scratch, files, layout)
        chunks = functools.partial(_chunks, checkpoint, tensors, stored, bar)
        for name, shard in files.items():
            _write_file(scratch / name, shard, chunks, layout)
    return output


def _stored_dtype(checkpoint, tensor):
    """The type of a tensor's pieces, which stacked must be one."""
    dtypes = sorted({checkpoint.tensors[piece.name].dtype for piece in tensor.pieces})
    if len(dtypes) > 1:
        raise ValueError(f"{checkpoint.place}: {' and '.join(piece.name for piece in tensor.pieces)} "
                         f"are stored in different types ({', '.join(dtypes)}): choose one with --dtype")
    return dtypes[0]


def _with_dtype(config, dtype):
    """The bytes of a config.json that says its weights are of `dtype`."""
    config = json.loads(config)
    config |= {"bf16": dtype == "bfloat16", "fp16": dtype == "float16", "fp32": dtype == "float32"}
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    return to_json(config)


def _file_in_the_way(output):
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name a file, or a folder without {output.suffix}")
    return [output] if output.exists() else []


def _files_in_the_way(folder):
    """The older checkpoint in `folder`. Raises FileExistsError for weights under other names."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: name a folder, or NAME.ckpt or NAME.safetensors")
    for file in sorted(folder.glob("*.safetensors")):
        if not OUR_FILES.fullmatch(file.name):
            raise FileExistsError(f"{file} would be loaded with the new checkpoint: choose another folder")
    return [file for file in sorted(folder.glob("*")) if OUR_FILES.fullmatch(file.name)]


def check_output(checkpoint, output, sidecars, overwrite):
    """Check that `save` may write to `output`; see there for the arguments and what is raised.

    Returns:
        The files of an older checkpoint that will be replaced.
    """
    one_file = output.suffix in (".ckpt", ".safetensors")
    folder = output.parent if one_file else output
    in_the_way = _file_in_the_way(output) if one_file else _files_in_the_way(folder)
    sources = {file.resolve() for file in checkpoint.files}
    for file in in_the_way:
        if file.resolve() in sources:
            raise ValueError(f"{file} is being read: write to another place")
        if not overwrite:
            raise FileExistsError(f"{file} exists: choose another place, or replace it with --overwrite")
    for name, content in sidecars.items():
        file = folder / name
        if not overwrite and file.exists() and file.read_bytes() != content:
            raise FileExistsError(f"{file} is of another model or type: choose another folder, or replace it "
                                  "with --overwrite")
    return in_the_way


def check_disk(folder, needed):
    """OSError where the disk of a folder, which need not be there yet, has not so many bytes free."""
    folder = folder.absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the disk is full, {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB "
                                    "free: make room or choose another place", str(folder))


def _total(stored):
    return sum(tensor.nbytes for tensor in stored.values())


def _shards(stored, layout):
    """{file name: {tensor name: Stored}}, filled in order up to SHARD_BYTES each."""
    shards = [{}]
    for name, tensor in stored.items():
        if shards[-1] and _total(shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    if layout == "pt" and len(shards) == 1:
        return {"model.safetensors": stored}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard
            for number, shard in enumerate(shards, start=1)}


def _write_index(folder, files, layout):
    weight_map = {name: file for file, shard in files.items() for name in shard}
    metadata = {"total_size": sum(_total(shard) for shard in files.values())}
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    if layout == "ms":
        # ms.load_distributed_checkpoint looks for the index under this name.
        (folder / "param_name_map.json").write_text(text, encoding="utf-8")


def _write_file(path, stored, chunks, layout):
    with open(path, "wb") as file:
        if path.suffix == ".ckpt":
            write_ckpt(file, stored, chunks)
        else:
            write_safetensors(file, stored, chunks, {"format": layout})


def _chunks(checkpoint, tensors, stored, bar, name):
    """The bytes of the tensor `name`, some CHUNK_BYTES at a time."""
    shape, dtype = stored[name]
    step = max(1, CHUNK_BYTES // (math.prod(shape[1:]) * ITEM_SIZE[dtype]))
    for piece in tensors[name].pieces:
        for first in range(piece.first, piece.last, step):
            rows = checkpoint.read(piece.name, first, min(first + step, piece.last))
            data = _bytes_of(rows, dtype, piece.name)
            yield data
            bar.update(len(data))


def _bytes_of(rows, dtype, name):
    import torch

    cast = rows.to(getattr(torch, dtype))
    if cast.dtype != rows.dtype and not torch.equal(cast.isfinite(), rows.isfinite()):
        raise ValueError(f"{name} has values up to {rows.abs().max():g}, beyond the range of {dtype}: "
                         "choose another --dtype")
    return cast.contiguous().flatten().view(torch.uint8).numpy().data


def _progress(total, name):
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc=name, file=sys.stderr, mininterval=0.5)


@contextlib.contextmanager
def _all_or_nothing(folder, in_the_way):
    """A scratch folder whose files replace `in_the_way` in `folder` at the end; on any error they vanish."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            yield Path(scratch)
            written = [folder / file.name for file in Path(scratch).iterdir()]
            for file in written:
                os.replace(Path(scratch, file.name), file)
            for file in set(in_the_way) - set(written):
                file.unlink()
    except BaseException as error:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full, nothing was written: "
                                        "make room or choose another place", str(folder)) from error
        raise


def add_common_arguments(parser):
    parser.add_argument("--dtype", choices=FLOATS, help="type of the weights to write (default: as stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older checkpoint")


def run(convert, parser):
    """Call `convert` with the command line's arguments.

    Its result is the only line on stdout; an error is one line on stderr, with exit code 1.
    """
    args = vars(parser.parse_args())
    signals = []

    def interrupt(number, _):
        signals.append(number)
        raise KeyboardInterrupt

    # SIGTERM, as a batch system sends it, shall clean up like Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        print(convert(**args))
    except (KeyboardInterrupt, ValueError, OSError) as error:
        # Native code that is interrupted may raise an error of its own instead.
        sys.exit(f"{convert.__name__}: {'interrupted, nothing was written' if signals else _reason(error)}")


def _reason(error):
    return f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else error
