"""Random Qwens as AutoGPTQ would have quantized them, packed by no code of this project, one number at a time."""
import json

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {
    "model_type": "qwen", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "kv_channels": 32, "intermediate_size": 192, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000.0,
    "seq_length": 32, "max_position_embeddings": 64, "use_dynamic_ntk": True, "use_logn_attn": True, "no_bias": True,
    "tie_word_embeddings": False, "bf16": False, "fp16": True, "fp32": False,
}
LINEARS = {"attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "mlp.w1": (96, 64), "mlp.w2": (96, 64),
           "mlp.c_proj": (64, 96)}
NAMES = [f"transformer.h.{layer}.{name}" for layer in range(2) for name in LINEARS]
W1 = "transformer.h.0.mlp.w1"


def settings(bits=4, group_size=32, desc_act=False, sym=True, **others):
    """A quantize_config.json."""
    return {"bits": bits, "group_size": group_size, "damp_percent": 0.01, "desc_act": desc_act, "sym": sym,
            "static_groups": False, "true_sequential": True, "model_name_or_path": None,
            "model_file_base_name": "model", "quant_method": "gptq", **others}


def random_model(bits=4, group_size=32, desc_act=False, sym=True, seed=0, dtype=torch.float16, names=None, **others):
    """
    Returns:
        ({name: tensor} as AutoGPTQ writes them, {name: float32 tensor} of the model that it stands for).
    """
    random = np.random.default_rng(seed)
    is_v2 = others.get("checkpoint_format") == "gptq_v2"
    tensors, weights = {}, {}
    hidden, vocab = CONFIG["hidden_size"], CONFIG["vocab_size"]
    ordinary = {"transformer.wte.weight": (vocab, hidden), "transformer.ln_f.weight": (hidden,),
                "lm_head.weight": (vocab, hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        for norm in ("ln_1", "ln_2"):
            ordinary[f"transformer.h.{layer}.{norm}.weight"] = (hidden,)
    for name, shape in ordinary.items():
        value = random.normal(1 if len(shape) == 1 else 0, 0.5, shape)
        tensors[name] = torch.tensor(value, dtype=dtype)
        weights[name] = tensors[name].float()
    for name in NAMES:
        outputs, inputs = LINEARS[name.split(".", 3)[3]]
        bias = random.normal(0, 0.5, outputs) if name.endswith("c_attn") else np.zeros(outputs)
        tensors[f"{name}.bias"] = torch.tensor(bias, dtype=dtype)
        if name.endswith("c_attn"):
            weights[f"{name}.bias"] = tensors[f"{name}.bias"].float()
        if names is not None and name not in names:
            tensors[f"{name}.weight"] = torch.tensor(random.normal(0, 0.2, (outputs, inputs)), dtype=dtype)
            weights[f"{name}.weight"] = tensors[f"{name}.weight"].float()
            continue
        packed, weight = random_linear(random, outputs, inputs, bits, group_size, desc_act, sym, is_v2, dtype)
        tensors |= {f"{name}.{kind}": value for kind, value in packed.items()}
        weights[f"{name}.weight"] = torch.tensor(weight)
    return tensors, weights


def random_linear(random, outputs, inputs, bits, group_size, desc_act, sym, is_v2=False, dtype=torch.float16):
    """({kind: tensor} as AutoGPTQ writes them, float32 [outputs, inputs])."""
    size = inputs if group_size == -1 else group_size
    groups, levels = -(-inputs // size), 2 ** bits
    g_idx = np.arange(inputs) // size
    if desc_act:
        random.shuffle(g_idx)
    q = random.integers(0, levels, (inputs, outputs))
    zeros = np.full((groups, outputs), levels // 2) if sym else random.integers(0, levels, (groups, outputs))
    scales = torch.tensor(random.uniform(0.2, 1, (groups, outputs)) / levels, dtype=dtype)
    stored = zeros if is_v2 else (zeros - 1) % levels
    packed = {"qweight": words(q.T, bits).T.contiguous(), "qzeros": words(stored, bits), "scales": scales,
              "g_idx": torch.tensor(g_idx, dtype=torch.int32)}
    weight = scales.float().numpy()[g_idx] * (q - zeros[g_idx]).astype(np.float32)
    return packed, np.ascontiguousarray(weight.T)


def words(rows, bits):
    """int32 [n, m * bits / 32] of numbers [n, m], the first of each word lowest."""
    per_word, result = 32 // bits, []
    for row in rows.tolist():
        result.append([sum(row[first + i] << bits * i for i in range(per_word))
                       for first in range(0, len(row), per_word)])
    return torch.from_numpy(np.array(result, np.uint32).view(np.int32))


def write_gptq_folder(folder, tensors, quantize_config, config=CONFIG, beside=True, inside=True):
    """A Hugging Face folder as AutoGPTQ writes it; returns it."""
    folder.mkdir()
    if inside:
        config = {**config, "quantization_config": quantize_config}
    (folder / "config.json").write_text(json.dumps(config))
    if beside:
        (folder / "quantize_config.json").write_text(json.dumps(quantize_config))
    (folder / "qwen.tiktoken").write_text("IQ== 0\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
