"""
The NPU audit of every shipped config, of kernels with planted faults, and what the `ascend` kernels choose where.

No NPU is needed: MindSpore compiles the graphs, and infers their shapes and types, without running them.
"""
import json
import subprocess
import sys
from collections import Counter

import audit_ascend
import mindspore as ms
import numpy as np
import pytest
import qwen_kernels
from audit_ascend import audit, documentation, load_config, main, roofline
from conftest import ROOT
from mindspore import Tensor, ops
from qwen_config import QwenConfig
from qwen_kernels.ascend import AscendKernels
from qwen_kernels.portable import PortableKernels
from qwen_model import QwenForCausalLM

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CONFIG_7B = ROOT / "configs/predict_qwen_7b.yaml"
DEMO = ROOT / "configs/predict_qwen_demo.yaml"
FUSED = {"RmsNorm": 2, "ApplyRotaryPosEmb": 1, "ReshapeAndCache": 1}  # of each, in a layer
ON_910B_ALONE = {*FUSED, "FlashAttentionScore", "PagedAttention"}


def in_a_layer(report, phase):
    return {name: row[phase]["layer"] for name, row in report["primitives"].items() if phase in row}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_on_a_910b(path, dtype):
    config = load_config(path, dtype)
    report = audit(config)
    assert report["findings"] == []
    assert in_a_layer(report, "prefill").items() >= {**FUSED, "FlashAttentionScore": 1, "MatMul": 7}.items()
    assert in_a_layer(report, "decode").items() >= {**FUSED, "PagedAttention": 1, "MatMul": 7, "Reshape": 0}.items()
    # Nothing is cast or transposed in a layer, each weight is read once, of the embedding only a row, the cache once.
    assert not any(count["layer"] for row in report["casts_and_transposes"].values() for count in row.values())
    sizes = report["bytes"]
    assert sizes["context_read"] == sizes["context"]
    assert sizes["weights"] - sizes["weights_read"] == 2 * (config.vocab_size - 1) * config.hidden_size


@pytest.mark.parametrize("path", [path for path in CONFIGS if "chat" not in path.stem], ids=lambda path: path.stem)
def test_every_model_passes_on_a_910a_without_what_a_910a_lacks(path):
    report = audit(load_config(path, "float16", "910A"))
    assert report["findings"] == []
    assert not ON_910B_ALONE & set(report["primitives"])


def test_a_910a_has_no_bfloat16():
    report = audit(load_config(DEMO, "bfloat16", "910A"))
    assert report["findings"] == ["prefill: bfloat16 is not documented for the 910A",
                                  "decode: bfloat16 is not documented for the 910A"]


def test_float32_and_logn_use_what_serves_them():
    single = audit(load_config(DEMO, "float32"))
    assert single["findings"] == []
    assert ON_910B_ALONE & set(single["primitives"]) == {"RmsNorm"}
    config = load_config(DEMO, "float16")
    config.use_logn_attn, config.train_seq_length = True, 1024
    scaled = audit(config)
    assert scaled["findings"] == []
    assert ON_910B_ALONE - set(scaled["primitives"]) == {"ApplyRotaryPosEmb"}


class UnsupportedPrimitive(AscendKernels):
    def swiglu(self, up, gate):
        return up * ops.cast(ops.Digamma()(ops.cast(gate, ms.float32)), gate.dtype)


class WeightCast(AscendKernels):
    def linear_add(self, x, weights, residual):
        weight, _ = weights
        return residual + ops.cast(self.matmul(ops.cast(x, ms.float32), ops.cast(weight, ms.float32)), x.dtype)


class WeightTransposed(AscendKernels):
    def linear_add(self, x, weights, residual):
        return residual + ops.matmul(x, ops.transpose(weights[0], (1, 0)))


class WeightReadTwice(AscendKernels):
    def linear_add(self, x, weights, residual):
        return residual + self.linear(x, weights) + self.linear(x + residual[:, :1], weights)


class CacheNotWritten(AscendKernels):
    def prefill_attention(self, query, key, value, caches, layout):
        return super().prefill_attention(query, key, value, (), layout)


@pytest.mark.parametrize("kernels, finding", [
    (UnsupportedPrimitive, "prefill, decode: Digamma is not documented for the 910B (MindSpore ops.Digamma: GPU CPU)"),
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


def test_an_unknown_product_is_refused():
    with pytest.raises(ValueError, match="soc: expected one of 910A, 910B, found '310P'"):
        AscendKernels(small_config(soc="310P"))


def test_auto_takes_these_kernels_on_an_npu(monkeypatch):
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend"}.get)
    assert qwen_kernels.runnable_kernels() == ["portable", "ascend"]
    assert type(qwen_kernels.build_kernels(small_config(kernels="auto"))) is AscendKernels
    assert type(qwen_kernels.build_kernels(small_config(kernels="portable"))) is PortableKernels


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_primitives_accept_the_shapes_of_a_real_step(dtype, prefill, tmp_path):
    """With every length known, MindSpore checks the primitives' inputs as it does at run time."""
    model = QwenForCausalLM(small_config(use_past=True, batch_size=3, compute_dtype=dtype))
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
    primitives = audit_ascend.count_primitives(audit_ascend.read_graph(mindir.read_bytes()))
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
