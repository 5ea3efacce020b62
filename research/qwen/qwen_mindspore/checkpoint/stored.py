"""What the readers of all formats say of a tensor, and of a file that is none."""
import math
from typing import NamedTuple

__all__ = ["FLOATS", "ITEM_SIZE", "Stored", "damaged", "to_array"]

FLOATS = ("float32", "float16", "bfloat16")
ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}

# How files of torch.save begin: the zip archive; and a pickle, the older format's first number among them.
TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")

# How else files begin that are found in place of weights, in small letters -> what they are.
OTHERS = {b"<!doctype html": "a web page", b"<html": "a web page", b"<?xml": "an XML page", b"gguf": "a GGUF file",
          b"\x1f\x8b": "a gzip archive", b"\x89hdf": "an HDF5 file", b"{": "a JSON text",
          b"version https://git": "a git-lfs pointer"}


class Stored(NamedTuple):
    """Shape and type of a tensor in a file; of a type that is no key of ITEM_SIZE, the file's own name."""

    shape: tuple
    dtype: str

    @property
    def nbytes(self):
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def to_array(tensor):
    """A torch tensor as a numpy array, floats as float32."""
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def damaged(path, reason):
    """The message of a file that can't be read: why, or what else it is, where its first bytes say so."""
    with open(path, "rb") as file:
        start = file.read(16)
    if path.suffix != ".safetensors" and start[8:9] == b"{":
        return f"{path}: this is a safetensors file: give it a name that ends in .safetensors"
    if path.suffix != ".bin" and start.startswith(TORCH):
        return f"{path}: this is a file of torch.save: give it a name that ends in .bin, pytorch_model.bin say"
    found = [what for signature, what in OTHERS.items() if start.lstrip().lower().startswith(signature)]
    return f"{path}: damaged or incomplete ({f'this is {found[0]}' if found else reason}): fetch or make the file again"
