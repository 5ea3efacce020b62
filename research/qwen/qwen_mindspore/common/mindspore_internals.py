"""
What touches MindSpore's insides, which the next MindSpore may change: nothing else of this package does.

Written for MindSpore 2.9. Tests of each: tests/common/test_mindspore_internals.py.
"""
import re
import time

__all__ = ["compiled_graph", "documented_platforms", "export_mindir", "forget_graphs", "memory_address", "parse_mindir",
           "select_compiled_graph"]


def select_compiled_graph(cell, graph):
    """
    Say which graph the next call of a cell runs. In the phases prefill and increment MindSpore takes the graph under
    the phase's name in `phase_cache`, and does not look at the inputs.

    Args:
        cell (Cell): In one of these phases.
        graph: What `compiled_graph` gave after a call; None: the call compiles one.
    """
    if graph is None:
        cell.phase_cache.pop(cell.phase, None)
    else:
        cell.phase_cache[cell.phase] = graph


def compiled_graph(cell):
    """The graph that the last call of a cell ran, for `select_compiled_graph`; None in another phase."""
    return cell.phase_cache[cell.phase] if cell.phase in ("prefill", "increment") else None


def forget_graphs(cell):
    """
    Let the next call of a cell compile its graph anew, as after a cell in it was replaced: MindSpore knows graphs by
    the cell's time of creation and the inputs.
    """
    from mindspore.graph.api import _cell_graph_executor

    if cell.compile_cache:
        _cell_graph_executor.del_net_res(cell, cell.compile_cache)
    cell.compile_cache.clear()
    cell.phase_cache.clear()
    object.__setattr__(cell, "_create_time", int(time.time() * 1e9))


def memory_address(parameter):
    """The address of a parameter's memory, by which it is known again while it lasts."""
    return parameter.data_ptr()


def export_mindir(cell, inputs):
    """
    The graph of a cell as bytes of a MindIR, without weights. As ms.export does, which then writes a file with every
    weight in it.
    """
    from mindspore.graph.api import _cell_graph_executor

    phase, _ = _cell_graph_executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
    return _cell_graph_executor._get_func_graph_proto(cell, phase, "mind_ir")


def parse_mindir(data):
    """(ModelProto of the bytes of a MindIR, function that names an element's type in lower case)."""
    from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

    def type_name(data_type):
        name = TensorProto.DataType.Name(data_type).lower()
        return "float32" if name == "float" else name

    return ModelProto.FromString(data), type_name


def documented_platforms(primitive):
    """
    The platforms that MindSpore's docstring of a primitive lists.

    Returns:
        (list[str], str): the platforms, and the function whose docstring it is; None where there is none.
    """
    from mindspore import ops
    from mindspore.ops import auto_generate
    from mindspore.ops.operations import _sequence_ops

    for module in (ops.operations, auto_generate, ops, _sequence_ops):
        text = getattr(getattr(module, primitive, None), "__doc__", None) or ""
        source = f"MindSpore ops.{primitive}"
        referred = re.search(r"Refer to :func:`mindspore\.ops\.(\w+)`", text)
        if referred and "Supported Platforms:" not in text:
            function = getattr(ops, referred[1], None) or getattr(auto_generate, referred[1], None)
            text, source = getattr(function, "__doc__", None) or "", f"MindSpore ops.{referred[1]}"
        platforms = re.search(r"Supported Platforms:\s+((?:``\w+``\s*)+)", text)
        if platforms:
            return re.findall(r"\w+", platforms[1]), source
    return None
