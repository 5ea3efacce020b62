"""Every shipped YAML against the published config.json values of its model."""
import mindspore as ms
import pytest
import yaml
from mindformers.tools.register.config import MindFormerConfig

from helpers import ROOT
from qwen_mindspore.model.config import QwenConfig

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUANTIZED = [path for path in CONFIGS if "_int" in path.stem]

# hidden, layers, heads, head size, intermediate_size, vocabulary, seq_length, rotary base, NTK and LogN
PUBLISHED = {
    "1_8b": (2048, 24, 16, 128, 11008, 151936, 8192, 10000, True),
    "7b": (4096, 32, 32, 128, 22016, 151936, 8192, 10000, True),
    "14b": (5120, 40, 40, 128, 27392, 152064, 2048, 10000, True),
    "72b": (8192, 80, 64, 128, 49152, 152064, 32768, 1000000, False),
}
RELEASED = [(name, chat) for name in PUBLISHED for chat in ("", "_chat")]


def load(name):
    return QwenConfig.from_pretrained(str(ROOT / "configs" / f"predict_qwen_{name}.yaml"))


@pytest.mark.parametrize("name, chat", RELEASED)
def test_sizes_are_the_published_ones(name, chat):
    config = load(name + chat)
    assert isinstance(config, QwenConfig)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_channels, config.intermediate_size,
            config.vocab_size, config.train_seq_length, config.theta, config.use_dynamic_ntk) == PUBLISHED[name]
    assert config.use_logn_attn == config.use_dynamic_ntk
    assert (config.rms_norm_eps, config.seq_length) == (1e-6, PUBLISHED[name][6])
    assert (config.pad_token_id, config.tie_word_embeddings, config.use_past) == (151643, False, True)


@pytest.mark.parametrize("name, chat", RELEASED)
def test_chat_models_speak_chatml_and_stop_at_its_tokens(name, chat):
    config = load(name + chat)
    assert (config.chat_format, config.eos_token_id) == (
        ("chatml", [151645, 151644, 151643]) if chat else ("raw", 151643))


@pytest.mark.parametrize("name, chat", RELEASED)
def test_released_models_are_for_an_npu_in_16_bits(name, chat):
    config = load(name + chat)
    whole = MindFormerConfig(str(ROOT / "configs" / f"predict_qwen_{name}{chat}.yaml"))
    assert (whole.context.device_target, whole.context.mode) == ("Ascend", "GRAPH_MODE")
    assert config.compute_dtype == config.param_init_type == ms.float16


def test_the_demo_runs_anywhere():
    config = load("demo")
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_channels) == (576, 30, 9, 64)
    assert MindFormerConfig(str(ROOT / "configs/predict_qwen_demo.yaml")).context.device_target == "auto"


def keys(tree, prefix=""):
    return [line for key, value in tree.items() for line in
            ([prefix + key] if not isinstance(value, dict) else keys(value, f"{prefix}{key}."))]


def test_all_are_built_from_the_same_keys_in_the_same_order():
    whole = [path for path in CONFIGS if path not in QUANTIZED]
    assert len(whole) == 9
    assert len({tuple(keys(yaml.safe_load(path.read_text()))) for path in whole}) == 1


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda path: path.stem)
def test_quantized_models_are_the_chat_models_but_for_their_weights(path):
    model, _, bits = path.stem.removeprefix("predict_qwen_").rpartition("_int")
    config, usual = load(f"{model}_int{bits}"), load(model)
    assert config.quantization == {"bits": int(bits), "group_size": 128}
    config.quantization = None
    assert config.to_dict() == usual.to_dict()


def test_each_chat_model_has_both_quantized_ones():
    assert {path.stem for path in QUANTIZED} == {
        f"predict_qwen_{name}_chat_int{bits}" for name in PUBLISHED for bits in (4, 8)}
