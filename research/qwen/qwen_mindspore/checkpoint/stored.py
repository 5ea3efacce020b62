"""What the readers of all formats say of a tensor, and of a file that is none."""
import math
from typing import NamedTuple

__all__ = ["FLOATS", "ITEM_SIZE", "Stored", "damaged", "to_array"]

FLOATS = ("float32", "float16", "bfloat16")
ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}


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
    """The message of a file that can't be read."""
    return f"{path}: damaged or incomplete ({reason}): fetch or make the file again"
