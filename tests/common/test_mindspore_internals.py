"""
What this project takes of MindSpore's insides, still there and still as it was: read these first with a new MindSpore.
"""
import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from qwen_mindspore.common.mindspore_internals import (
    compiled_graph,
    documented_platforms,
    export_mindir,
    forget_graphs,
    memory_address,
    parse_mindir,
    select_compiled_graph,
)


class Scale(nn.Cell):
    """x times a number that the graph takes for a constant."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.weight = Parameter(Tensor(np.ones(2, np.float32)), name="weight")

    def construct(self, x):
        return x * self.factor + self.weight


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def run(cell, *numbers):
    return cell(Tensor(np.array(numbers, np.float32))).asnumpy().tolist()


@pytest.mark.parametrize("phase", ["prefill", "increment"])
def test_a_compiled_graph_is_selected_whatever_the_inputs(phase):
    cell = Scale(2.0)
    cell.phase = phase
    select_compiled_graph(cell, None)
    assert run(cell, 1, 2) == [3, 5]
    first = compiled_graph(cell)
    cell.factor = 3.0
    forget_graphs(cell)
    select_compiled_graph(cell, None)
    assert run(cell, 1, 2) == [4, 7]
    second = compiled_graph(cell)
    assert first != second
    select_compiled_graph(cell, second)
    assert run(cell, 1, 2) == [4, 7]


def test_in_other_phases_there_is_no_graph_to_select():
    cell = Scale(2.0)
    run(cell, 1, 2)
    assert compiled_graph(cell) is None


def test_a_graph_keeps_what_it_was_compiled_with_until_it_is_forgotten():
    cell = Scale(2.0)
    assert run(cell, 1, 2) == [3, 5]
    cell.factor = 3.0
    assert run(cell, 1, 2) == [3, 5]
    forget_graphs(cell)
    assert run(cell, 1, 2) == [4, 7]
    forget_graphs(cell)
    assert run(cell, 1, 2) == [4, 7]


def test_memory_is_known_by_its_address():
    parameter = Parameter(Tensor(np.ones(2, np.float32)), name="x")
    assert memory_address(parameter) == parameter.asnumpy().__array_interface__["data"][0] != 0


def test_a_graph_as_mindir():
    cell = Scale(2.0)
    x = Tensor(np.ones(2, np.float32))
    model, type_name = parse_mindir(export_mindir(cell, (x,)))
    (weight,) = model.graph.parameter
    assert (list(weight.dims), type_name(weight.data_type)) == ([2], "float32")
    assert any(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("primitive, platforms", [("Digamma", {"GPU", "CPU"}), ("MatMul", {"Ascend", "GPU", "CPU"})])
def test_the_platforms_that_a_docstring_lists(primitive, platforms):
    found, source = documented_platforms(primitive)
    assert set(found) == platforms and source.startswith("MindSpore ops.")


def test_what_has_no_docstring():
    assert documented_platforms("NoSuchPrimitive") is None
