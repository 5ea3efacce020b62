"""
The NPU's graphs of a config, as MindSpore's front end makes them: built from the shapes of the weights, and read back.
"""
import math
import os
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from qwen_mindspore.common.mindspore_internals import export_mindir, parse_mindir
from qwen_mindspore.generate.loop import QwenForCausalLM

__all__ = ["BYTES", "Graph", "Node", "Value", "build_graph", "read_graph"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int8": 1, "uint8": 1, "qint4x2": 1}


@dataclass
class Value:
    """What a name of the graph stands for: dimensions, -1 where any will do, and a type."""
    shape: tuple
    dtype: str

    @property
    def bytes(self):
        return math.prod(self.shape) * BYTES[self.dtype]

    def __str__(self):
        return f"[{', '.join('?' if size < 0 else str(size) for size in self.shape)}]"


@dataclass
class Node:
    """One operation."""
    primitive: str
    inputs: list
    output: str


@dataclass
class Graph:
    """What MindSpore's front end makes of the model: nodes in order, and the values and parameters by name."""
    nodes: list
    values: dict
    parameters: dict

    @property
    def caches(self):
        """The names of the key and value caches."""
        kinds = ".key_cache", ".value_cache", ".key_scale_cache", ".value_scale_cache"
        return {name for name in self.parameters if name.endswith(kinds)}


def build_graph(config, phase, alter=None):
    """
    The graph of a phase, of a model in which no weight takes memory.

    Args:
        config (QwenConfig): See `audit.ascend.load_config`.
        phase (str): "prefill", "resume" or "decode".
        alter (function): Gets the model when it is built, to replace linears in it, say.

    Returns:
        Graph.
    """
    forced = os.environ.pop("QWEN_KERNELS", None)
    try:
        with no_init_parameters():
            model = QwenForCausalLM(config)
    finally:
        if forced is not None:
            os.environ["QWEN_KERNELS"] = forced
    if alter is not None:
        alter(model)
        model.collect()
    model.set_train(False)
    model.add_flags_custom(is_first_iteration=phase != "decode")
    model.init_parameters_data = lambda auto_parallel_mode=False: {}  # what the compiler calls to fill them
    shapes = ([None, 1] if phase == "decode" else [1, None]), [None], [None, None], [None], [None]
    ids, lengths, tables, slots, queries = (Tensor(shape=shape, dtype=ms.int32) for shape in shapes)
    inputs = ids, None, lengths, tables, slots, None, queries if phase == "resume" else None
    model.set_inputs(*inputs)
    return read_graph(export_mindir(model, inputs))


def read_graph(mindir):
    """The Graph that the bytes of a MindIR hold."""
    model, type_name = parse_mindir(mindir)
    if model.functions:
        raise ValueError("the graph has control flow, which this audit can't read")
    primitives = {primitive.name: primitive.op_type for primitive in model.primitives}
    prefix = f"{model.graph.name}:"

    def value(tensor):
        return Value(tuple(tensor.dims), type_name(tensor.data_type))

    parameters = {tensor.name.removeprefix(prefix): value(tensor) for tensor in model.graph.parameter}
    values = {**parameters, **{entry.name.removeprefix(prefix): value(entry.tensor[0]) for entry in model.graph.input}}
    nodes = []
    for proto in model.graph.node:
        kind = proto.op_type.removeprefix("REF::")
        output = proto.output[0].removeprefix(prefix)
        nodes.append(Node(primitives.get(kind, kind), [name.removeprefix(prefix) for name in proto.input], output))
        for attribute in proto.attribute:
            if attribute.name == "shape" and attribute.tensors:
                values[output] = value(attribute.tensors[0])
    return Graph(nodes, values, parameters)
