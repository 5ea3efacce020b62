"""Where the weights and caches of all layers are, for the CPU's kernels."""
import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen_mindspore.common.mindspore_internals import memory_address
from qwen_mindspore.kernels.weights import Kind

__all__ = ["LayerTable"]

FIELDS = 69  # of LayerWeights in csrc/ops.cc, of 8 bytes each


class LayerTable:
    """
    The addresses of the weights and the cache of every layer. An operator gets the table's own address in place of some
    hundreds of inputs, of which MindSpore takes a microsecond each to hand them over.

    Args:
        layers (list): (attention, feed_forward, caches) of each layer, see `kernels`.
    """

    def __init__(self, layers):
        self.layers = layers
        self.table = np.zeros((len(layers), FIELDS), np.int64)
        self.memory = {}  # address -> array: they keep what the table points to, whatever becomes of the parameters
        self.found = None

    def address(self, refresh):
        """
        Where the table is and how many layers it has, int64 [2], for the kernels' `layers` and `layers_whole`.

        Args:
            refresh (bool): Whether to look again where everything is. A parameter moves when it is loaded anew.
        """
        if refresh or self.found is None:
            self._fill()
            self.found = Tensor([self.table.ctypes.data, len(self.layers)], ms.int64)
        return self.found

    def _fill(self):
        before, self.memory = self.memory, {}
        for row, (attention, feed_forward, caches) in zip(self.table, self.layers):
            fields = []
            for (norm, _), *linears in (attention, feed_forward):
                fields.append(norm)
                for weights in linears:
                    fields += self._linear(weights)
            keys, values, key_scales, value_scales = (*caches, None, None, None, None)[:4]
            fields += keys, key_scales, values, value_scales
            row[:] = [field if isinstance(field, int) else self._address(field, before) for field in fields]

    @staticmethod
    def _linear(weights):
        """A Weights of csrc/kernels.h, with parameters in place of their addresses."""
        fields = weights.weight, weights.bias, weights.weight.shape[0], weights.kind
        if not weights.is_packed:
            return *fields, None, None, None, 0, 0
        inputs = weights.weight.shape[1] * (2 if weights.kind == Kind.INT4 else 1)
        zeros = None if weights.is_symmetric else weights.zeros
        size = inputs if weights.group_size == -1 else weights.group_size
        return *fields, weights.scales, zeros, weights.order, weights.scales.shape[1], size

    def _address(self, parameter, before):
        """Of its memory, which is kept from now on; 0 of None. `before`: what was kept until now."""
        if parameter is None:
            return 0
        array = before.get(memory_address(parameter))
        if array is None:
            array = parameter.asnumpy()
        address = array.__array_interface__["data"][0]
        self.memory[address] = array
        return address
