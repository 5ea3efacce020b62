"""
The NPU audit of every shipped config, of kernels with planted faults, and what the `ascend` kernels choose where.

No NPU is needed: MindSpore compiles the graphs, and infers their shapes and types, without running them.
"""
import json
import subprocess
import sys
from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from helpers import ROOT
from qwen_mindspore import kernels as qwen_kernels
from qwen_mindspore.audit import ascend as audit_ascend
from qwen_mindspore.audit.ascend import audit, documentation, load_config, roofline
from qwen_mindspore.audit.graph import read_graph
from qwen_mindspore.checkpoint.packing import Quantization, dequantize
from qwen_mindspore.cli.audit import main
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.kernels.ascend import AscendKernels
from qwen_mindspore.kernels.portable import PortableKernels
from qwen_mindspore.model.config import QwenConfig

CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if "_int" not in path.stem)
QUANTIZED = sorted((ROOT / "configs").glob("*_int*.yaml"))
CONFIG_7B = ROOT / "configs/predict_qwen_7b.yaml"
DEMO = ROOT / "configs/predict_qwen_demo.yaml"
FUSED = {"RmsNorm": 2, "ApplyRotaryPosEmb": 1, "ReshapeAndCache": 1}  # of each, in a layer
ON_910B_ALONE = {*FUSED, "FlashAttentionScore", "PagedAttention", "WeightQuantBatchMatmul"}


ANSWERING = {"max_decode_length", "eos_token_id", "chat_format"}  # no graph has these
reports = {}


def audited(config):
    """The report; graphs that another config had before are not built again."""
    key = json.dumps({name: value for name, value in config.to_dict().items() if name not in ANSWERING}, default=str)
    if key not in reports:
        reports[key] = audit(config)
    return reports[key]


def in_a_layer(report, phase):
    return {name: row[phase]["layer"] for name, row in report["primitives"].items() if phase in row}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_on_a_910b(path, dtype):
    config = load_config(path, dtype)
    report = audited(config)
    assert report["findings"] == []
    assert in_a_layer(report, "prefill").items() >= {**FUSED, "FlashAttentionScore": 1, "MatMul": 7}.items()
    resume = {**FUSED, "PagedAttention": 1, "MatMul": 7, "Reshape": 0}
    assert in_a_layer(report, "resume").items() >= resume.items()
    assert in_a_layer(report, "decode").items() >= {**FUSED, "PagedAttention": 1, "MatMul": 7, "Reshape": 0}.items()
    # Nothing is cast or transposed in a layer, each weight is read once, of the embedding only a row, the cache once.
    assert not any(count["layer"] for row in report["casts_and_transposes"].values() for count in row.values())
    sizes = report["bytes"]
    assert sizes["context_read"] == sizes["context"]
    assert sizes["weights"] - sizes["weights_read"] == 2 * (config.vocab_size - 1) * config.hidden_size


@pytest.mark.parametrize("name, dtype", [("1_8b_chat_int4", "float16"), ("72b_chat_int4", "bfloat16"),
                                         ("14b_chat_int8", "float16")])
def test_quantized_configs_pass_on_a_910b(name, dtype):
    """One of each kind: the others build the same graphs, see below."""
    config = load_config(ROOT / f"configs/predict_qwen_{name}.yaml", dtype)
    report = audit(config)
    assert report["findings"] == []
    for phase in ("prefill", "resume", "decode"):
        counts = report["primitives"]["MatMul"][phase], in_a_layer(report, phase)["WeightQuantBatchMatmul"]
        assert counts == ({"layer": 0, "all": 1}, 7)
    assert not any(count["layer"] for row in report["casts_and_transposes"].values() for count in row.values())
    hidden, ffn, bits = config.hidden_size, config.ffn_hidden_size, config.quantization["bits"]
    packed = 4 * hidden * hidden + 3 * hidden * ffn  # levels; a scale and an offset of 16 bits for 128 of them
    groups = (4 * hidden + 2 * ffn) * (hidden // 128) + hidden * -(-ffn // 128)
    layer = packed * bits // 8 + 4 * groups + 2 * (3 * hidden + 2 * hidden)
    assert report["bytes"]["weights_read"] == config.num_layers * layer + 2 * (
        config.vocab_size * hidden + hidden + hidden)


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda path: path.stem)
def test_every_linear_of_every_quantized_config_is_fused_on_a_910b(path):
    config = load_config(path, "float16")
    kernels, quantization = AscendKernels(config), Quantization.from_dict(config.quantization)
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    for outputs, inputs in ((hidden, hidden), (ffn, hidden), (hidden, ffn)):
        assert kernels.quantized_parameters(quantization, outputs, inputs)["weight"][1] in (ms.qint4x2, ms.int8)


def test_a_910a_dequantizes_at_each_step_which_is_found():
    report = audit(load_config(ROOT / "configs/predict_qwen_1_8b_chat_int4.yaml", "float16", "910A"))
    assert not ON_910B_ALONE & set(report["primitives"])
    assert len(report["findings"]) == 3 * 7
    assert "decode: the weight of transformer.layers.*.feed_forward.w2 is dequantized at run time" in report["findings"]


@pytest.mark.parametrize("path", [path for path in CONFIGS if "chat" not in path.stem], ids=lambda path: path.stem)
def test_every_model_passes_on_a_910a_without_what_a_910a_lacks(path):
    report = audit(load_config(path, "float16", "910A"))
    assert report["findings"] == []
    assert not ON_910B_ALONE & set(report["primitives"])


def test_a_910a_has_no_bfloat16():
    report = audit(load_config(DEMO, "bfloat16", "910A"))
    assert report["findings"] == ["prefill: bfloat16 is not documented for the 910A",
                                  "resume: bfloat16 is not documented for the 910A",
                                  "decode: bfloat16 is not documented for the 910A"]


def test_float32_and_logn_use_what_serves_them():
    single = audit(load_config(DEMO, "float32"))
    assert single["findings"] == []
    assert ON_910B_ALONE & set(single["primitives"]) == {"RmsNorm"}
    config = load_config(DEMO, "float16")
    config.use_logn_attn, config.train_seq_length = True, 1024
    scaled = audit(config)
    assert scaled["findings"] == []
    assert ON_910B_ALONE - set(scaled["primitives"]) == {"ApplyRotaryPosEmb", "WeightQuantBatchMatmul"}


def test_an_8_bit_cache_is_served_by_the_composition():
    config = load_config(DEMO, "float16")
    config.use_cache_quantization = True
    report = audit(config)
    assert report["findings"] == []
    assert ON_910B_ALONE & set(report["primitives"]) == {"RmsNorm"}
    slots = 2048 * config.num_layers  # of the context that is counted
    levels, scales = 2 * config.num_heads * config.kv_channels, 2 * 2 * config.num_heads
    assert report["bytes"]["context"] == slots * (levels + 4 * scales)


class UnsupportedPrimitive(AscendKernels):
    def swiglu(self, up, gate):
        return up * ops.cast(ops.Digamma()(ops.cast(gate, ms.float32)), gate.dtype)


class WeightCast(AscendKernels):
    def linear_add(self, x, weights, residual):
        product = self.matmul(ops.cast(x, ms.float32), ops.cast(weights.weight, ms.float32))
        return residual + ops.cast(product, x.dtype)


class WeightTransposed(AscendKernels):
    def linear_add(self, x, weights, residual):
        return residual + ops.matmul(x, ops.transpose(weights.weight, (1, 0)))


class WeightReadTwice(AscendKernels):
    def linear_add(self, x, weights, residual):
        return residual + self.linear(x, weights) + self.linear(x + residual[:, :1], weights)


class CacheNotWritten(AscendKernels):
    def prefill_attention(self, query, key, value, caches, layout):
        of_whole_prompts = len(layout) == 1  # others read the cache, and so it is written
        return super().prefill_attention(query, key, value, () if of_whole_prompts else caches, layout)


@pytest.mark.parametrize("kernels, finding", [
    (UnsupportedPrimitive, "prefill, resume, decode: Digamma is not documented for the 910B (MindSpore ops.Digamma: "
                           "GPU CPU)"),
    (WeightCast, "decode: Cast of the weight transformer.layers.*.attention.wo.weight at run time"),
    (WeightTransposed, "decode: Transpose of the weight transformer.layers.*.feed_forward.w2.weight at run time"),
    (WeightReadTwice, "decode: the weight transformer.layers.*.attention.wo.weight is read 2 times (MatMul, MatMul)"),
    (CacheNotWritten, "prefill: transformer.layers.*.attention.key_cache is not written"),
])
def test_planted_faults_are_found(kernels, finding, monkeypatch, capfd):
    monkeypatch.setitem(qwen_kernels.KERNEL_SETS, "ascend", kernels)
    assert main(["--config", str(DEMO), "--dtype", "float16"]) == 1
    assert f"finding: {finding}\n" in capfd.readouterr().out


def test_a_forced_kernel_set_does_not_mislead_the_audit(monkeypatch):
    monkeypatch.setenv("QWEN_KERNELS", "portable")
    assert "PagedAttention" in audit(load_config(DEMO, "float16"))["primitives"]


@pytest.mark.process
def test_the_command_works_anywhere_and_prints_the_report_alone(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/audit_ascend.py"), "--config", str(CONFIG_7B), "--json",
               "--layers", "3", "--batch_size", "4", "--context_length", "1000"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["layers"], report["layers_built"], report["batch_size"]) == (32, 3, 4)
    assert "audit_ascend: building the decode graph" in result.stderr
    assert list(tmp_path.iterdir()) == []
    # Qwen-7B by hand: 4096 wide, 11008 in each branch of the feed-forward, 151936 words, 32 layers, 2 bytes a weight
    layer = 4 * 4096 * 4096 + 3 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    head = 151936 * 4096
    context = 4 * 1000 * 32 * 2 * 4096 * 2
    assert report["bytes"] == {"weights": 2 * (32 * layer + 4096 + 2 * head),
                               "weights_read": 2 * (32 * layer + 4096 + head + 4 * 4096),
                               "context": context, "context_read": context}
    step = report["bytes"]["weights_read"] + context
    assert report["tokens_per_second"] == {"910A": pytest.approx(4 * 1.2e12 / step),
                                           "910B": pytest.approx(4 * 1.6e12 / step)}
    assert report["primitives"]["MatMul"]["decode"] == {"layer": 7, "all": 225}


def test_an_audit_that_cannot_be_made_says_why(capfd):
    assert main(["--config", "no_such.yaml"]) == 2
    assert "audit_ascend: no_such.yaml: no such config" in capfd.readouterr().err


def test_the_roofline_is_bytes_over_bandwidth():
    assert roofline(16e9, 1, "910B") == 100
    assert roofline(16e9, 8, "910A") == 600


@pytest.mark.parametrize("primitive, products", [
    ("MatMul", ("910A", "910B")),         # its own docstring
    ("Concat", ("910A", "910B")),         # a function that its docstring refers to
    ("PagedAttention", ("910B",)),        # the audit's own table
    ("Swiglu", ("910B",)),                # documented for Ascend alone
    ("Digamma", ()),                      # GPU and CPU
    ("NoSuchPrimitive", ()),
])
def test_documentation(primitive, products):
    assert documentation(primitive)[0] == products


def test_one_count_of_a_layer_makes_those_of_all():
    less, more = Counter(a=4, b=1), Counter(a=7, b=1, c=2)
    assert audit_ascend.scale(less, more, layers=10, built=2) == {
        "a": {"layer": 3, "all": 31}, "b": {"layer": 0, "all": 1}, "c": {"layer": 2, "all": 18}}


# What the kernels choose

def small_config(**settings):
    values = {"hidden_size": 64, "num_heads": 4, "num_layers": 1, "intermediate_size": 96, "vocab_size": 50,
              "seq_length": 64, "compute_dtype": "float16", "kernels": "ascend", "soc": "910B", **settings}
    return QwenConfig(**values)


@pytest.mark.parametrize("settings, fuses", [
    ({}, True), ({"compute_dtype": "bfloat16"}, True), ({"compute_dtype": "float32"}, False), ({"soc": "910A"}, False),
    ({"kv_channels": 18}, False), ({"block_size": 8}, False), ({"kv_channels": 256, "block_size": 128}, False)])
def test_each_primitive_is_chosen_within_its_documented_limits(settings, fuses):
    config = small_config(**settings)
    kernels = AscendKernels(config)
    assert kernels.dtype == config.compute_dtype
    assert kernels.fuses_attention == fuses
    assert kernels.fuses_norm == (config.soc == "910B")
    assert len(kernels.cache_shape(config)) == (4 if fuses else 2)


@pytest.mark.parametrize("settings, outputs, inputs, layout", [
    ({}, 96, 256, ("weight (256, 48) Int4", "scales (2, 96) Float16")),
    ({"bits": 8}, 96, 256, ("weight (256, 96) Int8", "scales (2, 96) Float16")),
    ({"group_size": -1}, 96, 256, ("weight (96, 128) Int4", "scales (96,) Float16")),
    ({"group_size": 512}, 96, 256, ("weight (96, 128) Int4", "scales (96,) Float16")),
    ({"group_size": 96}, 96, 256, ("weight (256, 48) Int4", "scales (3, 96) Float16")),
    # What WeightQuantBatchMatmul does not serve stays as it is in the checkpoint.
    ({"group_size": 16}, 96, 256, ("weight (96, 128) UInt8", "scales (96, 16) Float32")),
    ({}, 70000, 256, ("weight (70000, 128) UInt8", "scales (70000, 2) Float32")),
    ({}, 95, 256, ("weight (95, 128) UInt8", "scales (95, 2) Float32")),
    ({"soc": "910A"}, 96, 256, ("weight (96, 128) UInt8", "scales (96, 2) Float32")),
    ({"compute_dtype": "float32"}, 96, 256, ("weight (96, 128) UInt8", "scales (96, 2) Float32")),
])
def test_the_layout_of_quantized_weights_is_what_its_documentation_asks_for(settings, outputs, inputs, layout):
    quantization = Quantization(settings.get("bits", 4), settings.get("group_size", 128))
    others = {key: value for key, value in settings.items() if key not in ("bits", "group_size")}
    held = AscendKernels(small_config(**others)).quantized_parameters(quantization, outputs, inputs)
    assert tuple(f"{name} {held[name][0]} {held[name][1]}" for name in ("weight", "scales")) == layout


@pytest.mark.parametrize("bits, group_size", [(4, 64), (8, 64), (4, -1), (8, -1), (4, 96)])
def test_what_the_npu_multiplies_by_is_the_weight(bits, group_size):
    """(level + offset) * scale, the levels signed and two of 4 bits in a byte, as its documentation has it."""
    random = np.random.default_rng(0)
    kernels, quantization = AscendKernels(small_config()), Quantization(bits, group_size)
    shapes = quantization.shapes(48, 256)
    weight = random.integers(0, 256, shapes["weight"]).astype(np.uint8)
    zeros = random.integers(0, 2 ** bits, shapes["zeros"]).astype(np.uint8)
    scales = random.uniform(0.1, 1, shapes["scales"]).astype(np.float16).astype(np.float32)
    held = kernels.quantized_parameters(quantization, 48, 256)
    parts = kernels.prepare_quantized(quantization, weight, scales, zeros)
    assert [part.shape for part in parts] == [held[name][0] for name in ("weight", "scales", "zeros")]
    levels, factors, offsets = parts
    if bits == 4:
        levels = np.stack((levels << 4 >> 4, levels >> 4), -1).reshape(len(levels), -1)  # arithmetic shifts
    rows = np.minimum(np.arange(256) // (256 if group_size == -1 else group_size), len(factors) - 1)
    if group_size == -1:
        actual = (levels + offsets[:, None]) * factors[:, None]
    else:
        actual = ((levels + offsets[rows]) * factors[rows]).T
    np.testing.assert_array_equal(actual, dequantize(weight, scales, zeros, bits, group_size))


def test_an_unknown_product_is_refused():
    with pytest.raises(ValueError, match="soc: expected one of 910A, 910B, found '310P'"):
        AscendKernels(small_config(soc="310P"))


def test_auto_takes_these_kernels_on_an_npu(monkeypatch):
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend"}.get)
    assert qwen_kernels.runnable_kernels() == ["portable", "ascend"]
    assert type(qwen_kernels.build_kernels(small_config(kernels="auto"))) is AscendKernels
    assert type(qwen_kernels.build_kernels(small_config(kernels="portable"))) is PortableKernels


QUANTIZATIONS = {"unquantized": None, "int4": {"bits": 4, "group_size": 32, "desc_act": True},
                 "int8, one group": {"bits": 8, "group_size": -1}}


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
def test_the_primitives_accept_the_shapes_of_a_real_step(quantization, dtype, prefill, tmp_path):
    """With every length known, MindSpore checks the primitives' inputs as it does at run time."""
    model = QwenForCausalLM(small_config(use_past=True, batch_size=3, compute_dtype=dtype, quantization=quantization))
    model.set_train(False)
    model.add_flags_custom(is_first_iteration=prefill)
    lengths, tables = Tensor([5, 17, 2], ms.int32), Tensor(np.arange(6).reshape(3, 2), ms.int32)
    tokens = 24 if prefill else 3
    ids = Tensor(np.zeros((1, tokens) if prefill else (tokens, 1)), ms.int32)
    inputs = ids, None, lengths, tables, Tensor(np.arange(tokens), ms.int32), None
    ms.export(model, *inputs, file_name=str(tmp_path / "graph"), file_format="MINDIR")


def test_training_uses_the_gradient_of_flash_attention(tmp_path):
    model = QwenForCausalLM(small_config())
    model.set_train(True)
    ms.export(GradientOf(model), Tensor(np.ones((2, 9)), ms.int32), file_name=str(tmp_path / "graph"),
              file_format="MINDIR")
    mindir = next(tmp_path.glob("*.mindir"))
    mindir.chmod(0o600)
    primitives = audit_ascend.count_primitives(read_graph(mindir.read_bytes()))
    assert primitives["FlashAttentionScoreGrad"] == 1
    assert primitives["RmsNormGrad"] == 3
    assert primitives["ApplyRotaryPosEmb"] == 0


class GradientOf(ms.nn.Cell):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weights = ms.ParameterTuple(model.trainable_params())
        self.gradient = ops.GradOperation(get_by_list=True)
        self.set_train(True)

    def construct(self, ids):
        return self.gradient(self.model, self.weights)(ids)
