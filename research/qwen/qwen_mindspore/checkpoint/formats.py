"""The three file formats of checkpoints, read and written a few rows at a time.

    .safetensors  https://github.com/huggingface/safetensors#format
    .bin          torch.save's, see `checkpoint.torch_file`
    .ckpt         MindSpore's protobuf messages, mindspore/train/checkpoint_pb2.py

A reader has `tensors`, {name: Stored(shape, dtype)}, taken from the headers alone, `read(name, first, last)`, those
rows as a torch tensor, and `array(name, first, last)`, the same as a numpy array with floats as float32, for which
torch is not imported where numpy has the type. It opens the file anew for every read: the pages of a mapped file
count as this process's memory until it is closed, and a checkpoint may be larger than the memory.
"""
import json
import math

import numpy as np

from qwen_mindspore.checkpoint.stored import FLOATS, ITEM_SIZE, Stored, damaged, to_array
from qwen_mindspore.checkpoint.torch_file import TorchFile
from qwen_mindspore.common.text import shown

__all__ = ["FLOATS", "ITEM_SIZE", "READERS", "CkptFile", "SafetensorsFile", "Stored", "TorchFile", "write_ckpt",
           "write_safetensors"]

NUMPY_TYPES = ("float32", "float16", "int32", "uint8")
SAFETENSORS_NAME = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint8": "U8"}
CKPT_NAME = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16", "int32": "Int32", "uint8": "UInt8"}

# ms.save_checkpoint cuts tensors here too: a protobuf message must stay under 2 GB.
CKPT_SLICE = 512 * 2**20
LONGEST_TEXT = 2**16  # bytes of a name or a type in a .ckpt: what is longer is none


class SafetensorsFile:
    """A .safetensors file. Raises ValueError if it is damaged or shorter than its header says."""

    def __init__(self, path):
        self.path = path
        with self._open() as file:
            self.tensors = {name: _stored(file.get_slice(name)) for name in file.offset_keys()}

    def read(self, name, first, last):
        with self._open("pt") as file:
            return file.get_slice(name)[first:last]

    def array(self, name, first, last):
        if self.tensors[name].dtype not in NUMPY_TYPES:
            return to_array(self.read(name, first, last))
        with self._open() as file:
            return _widened(file.get_slice(name)[first:last])

    def _open(self, framework="np"):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path, framework=framework)
        except SafetensorError as error:
            raise ValueError(damaged(self.path, shown(str(error), 160)[1:-1])) from error


def _stored(header):
    return Stored(tuple(header.get_shape()), _our_name(header.get_dtype(), SAFETENSORS_NAME))


class CkptFile:
    """A MindSpore .ckpt file. Raises ValueError if it is damaged or cut off.

    ms.load_checkpoint holds the file and its tensors in memory at once; this walks over the messages' headers
    and then reads only the rows asked for.
    """

    def __init__(self, path):
        self.path = path
        self.tensors, self._spans = {}, {}
        try:
            with open(path, "rb") as file:
                for _, value in _fields(file, 0, _messages_end(file)):
                    self._add(file, value)
        except ValueError as error:
            raise ValueError(damaged(path, error)) from error
        for name, stored in self.tensors.items():
            found = sum(end - start for start, end in self._spans[name])
            if stored.dtype in ITEM_SIZE and stored.nbytes != found:
                raise ValueError(damaged(path, f"{shown(name)} has {found} bytes, expected {stored.nbytes}"))

    def read(self, name, first, last):
        import torch

        shape, dtype = self.tensors[name]
        data = self._read_rows(name, first, last)
        return torch.frombuffer(data, dtype=getattr(torch, dtype)).view(last - first, *shape[1:])

    def array(self, name, first, last):
        shape, dtype = self.tensors[name]
        if dtype not in NUMPY_TYPES:
            return to_array(self.read(name, first, last))
        data = np.frombuffer(self._read_rows(name, first, last), dtype)
        return _widened(data.reshape(last - first, *shape[1:]))

    def _add(self, file, value):
        fields = _only(_fields(file, *_bytes_field(value)), 1, 2)
        if not {1, 2} <= fields.keys():  # a map parameter, which no Qwen has
            return
        name, tensor = _read_text(file, fields[1]), list(_fields(file, *_bytes_field(fields[2])))
        fields = _only((field for field in tensor if field[0] != 1), 2, 3)
        if not {2, 3} <= fields.keys():
            raise ValueError(f"{shown(name)} has no type or no content")
        shape = tuple(value for number, value in tensor if number == 1)
        if not all(isinstance(size, int) for size in shape):
            raise ValueError(f"the shape of {shown(name)} is none")
        shape = () if shape == (0,) else shape  # a scalar's, as older versions of MindSpore write it
        stored = Stored(shape, _our_name(_read_text(file, fields[2]), CKPT_NAME))
        if self.tensors.setdefault(name, stored) != stored:
            raise ValueError(f"{shown(name)} is there twice, in different shapes or types")
        self._spans.setdefault(name, []).append(_bytes_field(fields[3]))

    def _read_rows(self, name, first, last):
        """The bytes of rows `first` to `last` of a tensor, whose content lies in one or more spans of the file."""
        shape, dtype = self.tensors[name]
        row = math.prod(shape[1:]) * ITEM_SIZE[dtype]
        first, last = first * row, last * row
        data, offset = bytearray(), 0
        with open(self.path, "rb") as file:
            for start, end in self._spans[name]:
                low, high = max(first - offset, 0), min(last - offset, end - start)
                if low < high:
                    file.seek(start + low)
                    data += file.read(high - low)
                offset += end - start
        return data


READERS = {".safetensors": SafetensorsFile, ".bin": TorchFile, ".ckpt": CkptFile}


def write_safetensors(file, tensors, chunks, metadata):
    """Write `tensors`, {name: Stored}, to an open file; `chunks(name)` yields the bytes of one.

    safetensors' own writer wants a whole file's tensors in memory.
    """
    # Larger items first keeps every tensor aligned to its item size, as safetensors' own writer does.
    order = sorted(tensors, key=lambda name: -ITEM_SIZE[tensors[name].dtype])
    header, offset = {"__metadata__": metadata}, 0
    for name in order:
        shape, dtype = tensors[name]
        end = offset + tensors[name].nbytes
        header[name] = {"dtype": SAFETENSORS_NAME[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for chunk in chunks(name):
            file.write(chunk)


def write_ckpt(file, tensors, chunks):
    """Write `tensors`, {name: Stored}, to an open file, byte for byte as ms.save_checkpoint does.

    ms.save_checkpoint wants all tensors in memory and removes an older file before the new one is there.
    """
    for name, stored in tensors.items():
        left, room = stored.nbytes, 0
        for chunk in chunks(name):
            while len(chunk):
                if not room:
                    room = min(left, CKPT_SLICE)
                    file.write(_ckpt_header(name, stored, room))
                part = chunk[:room]
                file.write(part)
                chunk, room, left = chunk[len(part):], room - len(part), left - len(part)


def _widened(array):
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _our_name(dtype, names):
    """The key of ITEM_SIZE whose name in a format is `dtype`; `dtype` itself if there is none."""
    return next((ours for ours, theirs in names.items() if theirs == dtype), dtype)


# Checkpoint { repeated Value value = 1; }
# Value { string tag = 1; TensorProto tensor = 2; }
# TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }


def _ckpt_header(name, stored, size):
    """A one-tensor Checkpoint but for its last `size` bytes, the tensor's content."""
    dtype = CKPT_NAME[stored.dtype].encode()
    tensor = b"".join(b"\x08" + _to_varint(dim) for dim in stored.shape)
    tensor += _prefix(2, len(dtype)) + dtype + _prefix(3, size)
    value = _prefix(1, len(name)) + name.encode() + _prefix(2, len(tensor) + size) + tensor
    return _prefix(1, len(value) + size) + value


def _prefix(number, size):
    """Key and length of a byte-string field."""
    return bytes([number << 3 | 2]) + _to_varint(size)


def _to_varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _fields(file, start, end):
    """(number, value) of each field of a message; a byte string's value is its (start, end) in the file."""
    file.seek(start)
    while file.tell() < end:
        key = _from_varint(file)
        if key & 7 == 0:
            yield key >> 3, _from_varint(file)
            continue
        if key & 7 != 2:
            raise ValueError("it is not a MindSpore checkpoint, or it is encrypted")
        size = _from_varint(file)
        start = file.tell()
        if start + size > end:
            raise ValueError(f"{start + size - end} bytes are missing at its end")
        yield key >> 3, (start, start + size)
        file.seek(start + size)


def _from_varint(file):
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a number")
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
    raise ValueError("a number in it has more than 64 bits")


def _only(fields, *numbers):
    """{number: value} of the fields of these numbers, of which the last one counts, as protobuf says."""
    return {number: value for number, value in fields if number in numbers}


def _bytes_field(value):
    if isinstance(value, int):
        raise ValueError("a number stands where a text or a message is expected")
    return value


def _read_text(file, span):
    start, end = _bytes_field(span)
    if end - start > LONGEST_TEXT:
        raise ValueError(f"a name or a type in it has {end - start} bytes")
    file.seek(start)
    return file.read(end - start).decode()


def _messages_end(file):
    """Where the messages end: `crc_check` appends the word crc_num and ten bytes."""
    size = file.seek(0, 2)
    file.seek(max(size - 17, 0))
    return size - 17 if file.read(7) == b"crc_num" else size
