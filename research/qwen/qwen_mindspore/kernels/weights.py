"""What a linear holds, as the kernels take it: a named kind, and everything that belongs to it."""
from enum import IntEnum

import mindspore as ms

__all__ = ["Kind", "Weights", "float_kind", "packed_kind", "weights_of"]


class Kind(IntEnum):
    """
    What the weight of a linear is. The C++ of the CPU's kernels is compiled with these numbers, see `kernels.cpu`.

    FLOAT32, FLOAT16, BFLOAT16: numbers [outputs, inputs]. INT8, INT4: levels, see `checkpoint.packing`, in the layout
    of the kernel set that they were prepared for. CELL: no weights at all, but a cell that computes [T, inputs] ->
    [T, outputs].
    """

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3
    INT4 = 4
    CELL = 5


@ms.jit_class
class Weights:
    """
    The weights of one linear, x [T, inputs] -> [T, outputs].

    They are collected after a model is built, loaded or altered: see `CausalLM.collect`. An object of this class only
    points to the parameters of a cell.

    Args:
        kind (Kind): What `weight` is.
        weight (Parameter): [outputs, inputs] numbers, or packed levels.
        bias (Parameter): [outputs], or None.
        quantization (Quantization): Of packed levels, otherwise None.
        scales, zeros (Parameter): Of packed levels, [outputs, groups] or as the kernel set lays them out.
        order (Parameter): int32 [inputs] or None: column k of packed levels belongs to input order[k].
        adapter (Cell): x [T, inputs] -> [T, outputs], which is added to the product; or None.
        cell (Cell): Of the kind CELL: what computes the product, bias and all.

    Attributes:
        is_packed (bool): Levels, not numbers.
        group_size (int): Inputs that share a scale; 0 of what is not packed, -1: all of an output's.
        is_symmetric (bool): All zeros are half of the levels.
        own: What the kernel set keeps with them, see `bind` of the sets.
    """

    def __init__(self, kind, weight=None, bias=None, quantization=None, scales=None, zeros=None, order=None,
                 adapter=None, cell=None):
        self.kind = int(kind)
        self.weight, self.bias, self.scales, self.zeros, self.order = weight, bias, scales, zeros, order
        self.adapter, self.cell, self.own = adapter, cell, None
        self.is_packed = kind in (Kind.INT8, Kind.INT4)
        self.group_size = quantization.group_size if quantization else 0
        self.is_symmetric = bool(quantization and quantization.sym)

    @property
    def is_plain(self):
        """Whether the product is of these weights alone, so that a set may take them by their address."""
        return self.kind != Kind.CELL and self.adapter is None


def float_kind(dtype):
    """The Kind of a weight of numbers of a MindSpore type."""
    return {ms.float32: Kind.FLOAT32, ms.float16: Kind.FLOAT16, ms.bfloat16: Kind.BFLOAT16}[dtype]


def packed_kind(bits):
    """The Kind of a weight packed to 8 or 4 bits."""
    return {8: Kind.INT8, 4: Kind.INT4}[bits]


def weights_of(linear, kernels):
    """
    The Weights of a linear.

    Args:
        linear (Cell): One of `model.linear`, or any cell x [T, inputs] -> [T, outputs] that was put in the place of
            one.
        kernels (Cell): The kernel set that will multiply by them.
    """
    collected = getattr(linear, "collected", None)
    return kernels.bind(Weights(Kind.CELL, cell=linear)) if collected is None else collected
