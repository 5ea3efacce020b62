"""A built model may be altered: a linear replaced by a wrapper or a quantized one, or given an adapter, at any time."""
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from qwen_mindspore.audit.ascend import find_faults
from qwen_mindspore.audit.graph import build_graph
from qwen_mindspore.checkpoint.packing import Quantization, dequantize
from qwen_mindspore.kernels import runnable_kernels
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.linear import Linear, QuantLinear, replace_linear

PROMPTS = [[5, 9, 300, 41], list(range(40, 57))]


class Wrapper(nn.Cell):
    """A linear as it was."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def construct(self, x):
        return self.linear(x)


class Doubled(Wrapper):
    """Twice what a linear gives."""

    def construct(self, x):
        return 2 * self.linear(x)


class LowRank(nn.Cell):
    """x [T, inputs] -> [T, outputs] by way of two numbers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        random = np.random.default_rng(0)
        self.down = Parameter(Tensor(random.standard_normal((inputs, 2), np.float32)), name="down")
        self.up = Parameter(Tensor(random.standard_normal((2, outputs), np.float32)), name="up")

    def construct(self, x):
        return ops.matmul(ops.matmul(x, self.down), self.up)


@pytest.fixture(params=runnable_kernels())
def build(request, build_tiny):
    """A function that builds the golden model with each kernel set."""
    return lambda **settings: build_tiny(kernels=request.param, batch_size=2, seq_length=128, **settings)


def logits(model):
    """[steps, prompts, vocab_size] of a prompt and of decoding, or of whole sequences."""
    out = model.generate(PROMPTS, max_new_tokens=4, do_sample=False, eos_token_id=[], return_dict_in_generate=True,
                         output_logits=True)
    return np.stack(out.logits)


def every_place(layer):
    """(cell, name) of each linear of a layer."""
    return [(layer.attention, name) for name in ("wq", "wk", "wv", "wo")] + [
        (layer.feed_forward, name) for name in ("w1", "w2", "w3")]


@pytest.mark.parametrize("use_past", [True, False])
@pytest.mark.parametrize("answered", [False, True], ids=["before the first answer", "after it"])
def test_a_wrapped_linear_gives_the_same_logits(build, use_past, answered):
    expected = logits(build(use_past=use_past))
    model = build(use_past=use_past)
    if answered:
        np.testing.assert_array_equal(logits(model), expected)
    for cell, name in every_place(model.transformer.layers[1]):
        setattr(cell, name, Wrapper(getattr(cell, name)))
    model.lm_head = Wrapper(model.lm_head)
    # The layers run one by one now, with sums in another order.
    np.testing.assert_allclose(logits(model), expected, atol=2e-5)


@pytest.mark.parametrize("answered", [False, True], ids=["before the first answer", "after it"])
def test_what_the_wrapper_computes_counts(build, answered):
    expected, model = build(), build()
    feed_forward = expected.transformer.layers[2].feed_forward
    feed_forward.w2.weight.set_data(feed_forward.w2.weight * 2)
    if answered:
        logits(model)
    feed_forward = model.transformer.layers[2].feed_forward
    feed_forward.w2 = Doubled(feed_forward.w2)
    np.testing.assert_allclose(logits(model), logits(expected), atol=2e-5)
    feed_forward.w2 = feed_forward.w2.linear
    np.testing.assert_array_equal(logits(model), logits(build()))


@pytest.mark.parametrize("bits, group_size, sym", [(4, 32, True), (8, -1, False)])
@pytest.mark.parametrize("answered", [False, True], ids=["before the first answer", "after it"])
def test_a_quantized_linear_takes_the_place_of_an_ordinary_one(build, bits, group_size, sym, answered):
    expected, model = build(), build()
    if answered:
        logits(model)
    quantization = Quantization(bits, group_size, sym=sym)
    config = QwenConfig(quantization=quantization.to_dict())
    random, name = np.random.default_rng(0), "transformer.layers.0.feed_forward.w1"
    outputs, inputs = model.transformer.layers[0].feed_forward.w1.weight.shape
    shapes = quantization.shapes(outputs, inputs)
    weight = random.integers(0, 256, shapes["weight"]).astype(np.uint8)
    zeros = np.full(shapes["zeros"], 2 ** (bits - 1), np.uint8)
    if not sym:
        zeros = random.integers(0, 2 ** bits, shapes["zeros"]).astype(np.uint8)
    scales = (random.uniform(0.5, 1, shapes["scales"]) / 2 ** bits / 8).astype(np.float32)
    quantized = QuantLinear(config, model.kernels, inputs, outputs)
    for part, array in zip((quantized.weight, quantized.scales, quantized.zeros),
                           quantized.prepare(weight.copy(), scales, zeros)):
        part.set_data(Tensor(array, part.dtype))
    replace_linear(model, name, quantized)
    whole = dequantize(weight, scales, zeros, bits, group_size)
    expected.transformer.layers[0].feed_forward.w1.weight.set_data(Tensor(whole))
    np.testing.assert_allclose(logits(model), logits(expected), atol=2e-5)
    names = [parameter.name for parameter in model.get_parameters()]
    assert f"{name}.scales" in names and len(set(names)) == len(names)


def test_an_adapter_is_added_and_taken_away(build):
    model = build()
    before = logits(model)
    linear = model.transformer.layers[0].attention.wv
    linear.adapter = LowRank(*linear.weight.shape[::-1])
    merged = build()
    weight = merged.transformer.layers[0].attention.wv.weight
    delta = linear.adapter.down.asnumpy() @ linear.adapter.up.asnumpy()
    weight.set_data(Tensor(weight.asnumpy() + delta.T))
    with_adapter = logits(model)
    assert np.abs(with_adapter - before).max() > 0.1
    np.testing.assert_allclose(with_adapter, logits(merged), atol=2e-4)
    linear.adapter = None
    model.lm_head.adapter = LowRank(*model.lm_head.weight.shape[::-1])
    assert np.abs(logits(model) - before).max() > 0.1
    model.lm_head.adapter = None
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("phase", ["prefill", "resume", "decode"])
def test_the_audit_sees_the_same_graph_around_a_wrapped_linear(phase):
    def wrap(model):
        for layer in model.transformer.layers:
            for cell, name in every_place(layer):
                setattr(cell, name, Wrapper(getattr(cell, name)))

    config = QwenConfig(hidden_size=64, num_heads=2, num_layers=2, intermediate_size=192, vocab_size=96, seq_length=32,
                        kernels="ascend", soc="910B", use_past=True, compute_dtype="bfloat16")
    plain, wrapped = build_graph(config, phase), build_graph(config, phase, wrap)
    assert [node.primitive for node in wrapped.nodes] == [node.primitive for node in plain.nodes]
    assert find_faults(wrapped, phase, "910B") == find_faults(plain, phase, "910B") == []


def test_what_is_no_linear_of_the_model_is_refused(build_tiny):
    model = build_tiny()
    with pytest.raises(ValueError, match="transformer.layers.0.attention.wx: expected the name of a linear"):
        replace_linear(model, "transformer.layers.0.attention.wx", Wrapper(model.lm_head))
    with pytest.raises(ValueError, match="transformer.layers.9.attention.wq: expected the name of a linear"):
        replace_linear(model, "transformer.layers.9.attention.wq", Wrapper(model.lm_head))


def test_linears_can_be_called_by_themselves(build_tiny):
    head = build_tiny().lm_head
    assert isinstance(head, Linear)
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    np.testing.assert_allclose(head(Tensor(x)).asnumpy(), x @ head.weight.asnumpy().T, atol=1e-4)
