"""Every shipped YAML against the published config.json values of its model."""
import copy

import mindspore as ms
import pytest
from mindformers.tools.register.config import MindFormerConfig

from helpers import ROOT
from qwen_mindspore.common.configs import read_config
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


# What all of them say, as complete YAMLs did before they inherited.
SHARED = {
    "seed": 0, "output_dir": "./output", "run_mode": "predict", "use_parallel": False, "load_checkpoint": "",
    "load_ckpt_format": "ckpt", "auto_trans_ckpt": False, "trainer": {"type": "CausalLanguageModelingTrainer"},
    "model": {
        "model_config": {
            "type": "QwenConfig", "kv_channels": 128, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": False,
            "batch_size": 1, "compute_dtype": "float16", "param_init_type": "float16", "use_past": True,
            "block_size": 16, "chat_format": "raw", "eos_token_id": 151643, "pad_token_id": 151643,
            "max_decode_length": 512, "do_sample": False, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.0},
        "arch": {"type": "QwenForCausalLM"}},
    "processor": {"type": "QwenProcessor", "return_tensors": "ms",
                  "tokenizer": {"type": "QwenTokenizer", "vocab_file": None, "pad_token": "<|endoftext|>"}},
    "context": {"mode": "GRAPH_MODE", "device_target": "Ascend", "device_id": 0,
                "ascend_config": {"precision_mode": "must_keep_origin_dtype"}}}

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "kv_channels", "intermediate_size", "vocab_size",
         "seq_length", "rotary_emb_base", "use_dynamic_ntk")
MAX_POSITIONS = {"1_8b": 32768, "7b": 32768, "14b": 8192, "72b": 32768}
MEMORY = {"1_8b": "28GB", "7b": "28GB", "14b": "58GB", "72b": "58GB"}
CHAT = {"chat_format": "chatml", "eos_token_id": [151645, 151644, 151643], "max_decode_length": 2048}
DEMO = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "kv_channels": 64,
        "intermediate_size": 3072, "vocab_size": 49408, "layer_norm_epsilon": 1e-5, "rotary_emb_base": 100000,
        "use_dynamic_ntk": False, "use_logn_attn": False, "train_seq_length": 2048, "max_position_embeddings": 8192,
        "seq_length": 2048, "compute_dtype": "float32", "param_init_type": "float32", "chat_format": "chatml",
        "eos_token_id": [49158, 49157, 49156], "pad_token_id": 49156}


def whole(name, model_config, context):
    """The whole of a YAML: what all have in common, and what is its own."""
    expected = copy.deepcopy(SHARED)
    expected["trainer"]["model_name"] = f"qwen_{name}"
    expected["model"]["model_config"].update(model_config)
    expected["processor"]["tokenizer"]["model_max_length"] = model_config["seq_length"]
    expected["context"].update(context)
    return expected


def released(name):
    sizes = dict(zip(SIZES, PUBLISHED[name]))
    return {**sizes, "train_seq_length": sizes["seq_length"], "use_logn_attn": sizes["use_dynamic_ntk"],
            "max_position_embeddings": MAX_POSITIONS[name]}


@pytest.mark.parametrize("name, chat", RELEASED)
def test_inheritance_gives_the_whole(name, chat):
    model_config = {**released(name), **(CHAT if chat else {})}
    expected = whole(name, model_config, {"max_device_memory": MEMORY[name]})
    assert read_config(ROOT / f"configs/predict_qwen_{name}{chat}.yaml") == expected
    if chat:
        for bits in (4, 8):
            expected["model"]["model_config"]["quantization"] = {"bits": bits, "group_size": 128}
            assert read_config(ROOT / f"configs/predict_qwen_{name}_chat_int{bits}.yaml") == expected


def test_inheritance_gives_the_whole_of_the_demo():
    assert read_config(ROOT / "configs/predict_qwen_demo.yaml") == whole(
        "demo", DEMO, {"device_target": "auto", "max_device_memory": "28GB"})


def keys(tree, prefix=""):
    return [line for key, value in tree.items() for line in
            ([prefix + key] if not isinstance(value, dict) else keys(value, f"{prefix}{key}."))]


def test_all_say_the_same_keys():
    complete = [path for path in CONFIGS if path not in QUANTIZED]
    assert len(complete) == 9
    assert len({tuple(sorted(keys(read_config(path)))) for path in complete}) == 1


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
