"""Writing a checkpoint, and the files that travel along, whole or not at all, a few rows at a time."""
import functools
import json
import math

from qwen_mindspore.checkpoint.formats import ITEM_SIZE, Stored, write_ckpt, write_safetensors
from qwen_mindspore.checkpoint.replace import OUR_FILES, repair, replacing_checkpoint, writes_one_file
from qwen_mindspore.common.files import check_disk, to_json
from qwen_mindspore.common.progress import progress_bar

__all__ = ["check_output", "save"]

CHUNK_BYTES = 64 * 2**20
SHARD_BYTES = 2 * 10**9


def save(checkpoint, tensors, output, sidecars, dtype=None, overwrite=False, layout="ms"):
    """Write a checkpoint and the files that travel along, whole or not at all.

    Args:
        checkpoint: the Checkpoint that is read.
        tensors: {name: names.Tensor}, what is written and what it is made of.
        output: Path; one file if it ends in .ckpt or .safetensors, else a folder of shards.
        sidecars: {name: bytes}, written beside the file or into the folder.
        dtype: one of FLOATS, or None for the type each tensor is stored in; a quantized linear's tensors keep theirs.
        overwrite: replace an older checkpoint, and other sidecars, at the same place.
        layout: "ms" or "pt", for MindSpore or for Hugging Face transformers.

    Returns:
        `output`.

    Raises:
        ValueError: the tensors cannot be written in this type, or `output` is being read.
        OSError: something is in the way, or the disk is full.
    """
    one_file = writes_one_file(output)
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
    with (replacing_checkpoint(output, in_the_way) as scratch,
          progress_bar(_total(stored), output.name, unit="B", unit_scale=True) as bar):
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
    one_file = writes_one_file(output)
    folder = output.parent if one_file else output
    repair(output, clean=True)
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
