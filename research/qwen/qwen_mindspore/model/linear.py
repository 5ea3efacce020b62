"""The linears and the embedding of a Qwen: they hold weights, ordinary or quantized, for the kernels to multiply by."""
import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from qwen_mindspore.checkpoint.packing import EMBEDDING, Quantization
from qwen_mindspore.kernels.weights import Weights, float_kind, packed_kind

__all__ = ["Embedding", "Linear", "QuantEmbedding", "QuantLinear", "build_embedding", "build_linear", "replace_linear"]

LINEARS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "lm_head")


def build_linear(config, kernels, name, inputs, outputs, has_bias=False):
    """
    A `Linear`, or a `QuantLinear` where `config.quantization` says so of this name.

    Args:
        name (str): The cell's place in the model, `transformer.layers.0.attention.wq` for example.
    """
    quantization = Quantization.from_dict(config.quantization)
    kind = QuantLinear if quantization and quantization.covers(name) else Linear
    return kind(config, kernels, inputs, outputs, has_bias)


def build_embedding(config, kernels):
    """An `Embedding`, or a `QuantEmbedding` where `config.quantization` says so."""
    quantization = Quantization.from_dict(config.quantization)
    kind = QuantEmbedding if quantization and quantization.covers(EMBEDDING) else Embedding
    return kind(config, kernels)


def replace_linear(model, name, linear):
    """
    Put another cell in the place of a linear, of a model that is built, loaded or not, before its first answer or
    later.

    Args:
        model (CausalLM): Its parameters then have the names of their new places.
        name (str): The linear's place, `transformer.layers.0.attention.wq` for example, or `lm_head`.
        linear (Cell): x [T, inputs] -> [T, outputs]; one of this module, or any other, around the one that is there
            say.

    Raises:
        ValueError: There is no such linear.
    """
    parent, _, leaf = name.rpartition(".")
    cells = dict(model.cells_and_names())
    if leaf not in LINEARS or parent not in cells or not hasattr(cells[parent], leaf):
        raise ValueError(f"{name}: expected the name of a linear, as transformer.layers.0.attention.wq or lm_head")
    setattr(cells[parent], leaf, linear)
    model.collect()


def _weight_type(config, kernels):
    """
    That of what a quantized model leaves as it is. Who quantizes is short of memory, and weights that were float16 are
    no more exact in float32: they stay float16 where the kernels compute in float32.
    """
    is_half = config.quantization and config.param_init_type == ms.float16 and not config.tie_word_embeddings
    return ms.float16 if is_half and kernels.dtype == ms.float32 else kernels.dtype


class _Holder(nn.Cell):
    """
    What linears have in common: x [T, inputs] -> [T, outputs], by the kernels, of weights that are held here.

    Attributes:
        adapter (Cell): x [T, inputs] -> [T, outputs], which is added to the product; None at first.
    """

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels
        self.adapter = None
        self.collected = None

    def collect(self):
        """Take the parameters as they are now."""
        self.collected = self.kernels.bind(self.weights())

    def construct(self, x):
        return self.kernels.linear(x, self.collected)


class Linear(_Holder):
    """Ordinary weights: weight [outputs, inputs], as checkpoints hold it, and perhaps bias [outputs]."""

    def __init__(self, config, kernels, inputs, outputs, has_bias=False):
        super().__init__(kernels)
        normal = Normal(config.init_method_std)
        weight = initializer(normal, (outputs, inputs), _weight_type(config, kernels))
        self.weight = Parameter(weight, name="weight")
        self.bias = _bias(kernels, outputs) if has_bias else None
        self.collect()

    def weights(self):
        """The Weights, see `kernels.weights`."""
        return Weights(float_kind(self.weight.dtype), self.weight, self.bias, adapter=self.adapter)


class QuantLinear(_Holder):
    """
    Quantized weights: see `checkpoint.packing`. They are held in the kernels' own layout, zeros as long as no
    checkpoint is loaded.
    """

    def __init__(self, config, kernels, inputs, outputs, has_bias=False):
        super().__init__(kernels)
        self.quantization = Quantization.from_dict(config.quantization)
        self.packed_shapes = self.quantization.shapes(outputs, inputs)
        held = kernels.quantized_parameters(self.quantization, outputs, inputs)
        self.weight, self.scales, self.zeros = (_zeros(name, *held[name]) for name in ("weight", "scales", "zeros"))
        self.order = _zeros("order", (inputs,), ms.int32) if "order" in self.packed_shapes else None
        self.bias = _bias(kernels, outputs) if has_bias else None
        self.collect()

    def prepare(self, weight, scales, zeros):
        """What a checkpoint holds, numpy arrays, in the layout of the kernels."""
        return self.kernels.prepare_quantized(self.quantization, weight, scales, zeros)

    def weights(self):
        """The Weights, see `kernels.weights`."""
        return Weights(packed_kind(self.quantization.bits), self.weight, self.bias, self.quantization, self.scales,
                       self.zeros, self.order, self.adapter)


class Embedding(nn.Cell):
    """ids [...] int32 -> [..., hidden]."""

    def __init__(self, config, kernels):
        super().__init__()
        shape, normal = (config.vocab_size, config.hidden_size), Normal(config.init_method_std)
        self.dtype = kernels.dtype
        self.embedding_weight = Parameter(initializer(normal, shape, _weight_type(config, kernels)),
                                          name="embedding_weight")

    def construct(self, ids):
        return ops.cast(ops.gather(self.embedding_weight, ids, 0), self.dtype)


class QuantEmbedding(nn.Cell):
    """ids [T] int32 -> [T, hidden], of quantized rows: see `checkpoint.packing`."""

    def __init__(self, config, kernels):
        super().__init__()
        quantization = Quantization.from_dict(config.quantization)
        self.kind, self.group_size = int(packed_kind(quantization.bits)), quantization.group_size
        shapes = quantization.shapes(config.vocab_size, config.hidden_size)
        self.packed_shapes = {name: shape for name, shape in shapes.items() if name != "order"}
        self.embedding_weight = _zeros("embedding_weight", shapes["weight"], ms.uint8)
        self.scales = _zeros("scales", shapes["scales"], ms.float32)
        self.zeros = _zeros("zeros", shapes["zeros"], ms.uint8)
        self.kernels = kernels

    @property
    def weight(self):
        """What a linear calls so."""
        return self.embedding_weight

    @staticmethod
    def prepare(weight, scales, zeros):
        """As `prepare_quantized` of the kernels: rows are gathered from what a checkpoint holds."""
        return weight, scales, zeros

    def construct(self, ids):
        weight, scales, zeros = (ops.gather(self.embedding_weight, ids, 0), ops.gather(self.scales, ids, 0),
                                 ops.gather(self.zeros, ids, 0))
        return self.kernels.dequantize(weight, scales, zeros, self.kind, self.group_size)


def _bias(kernels, outputs):
    return Parameter(initializer("zeros", (outputs,), kernels.dtype), name="bias")


def _zeros(name, shape, dtype):
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)
