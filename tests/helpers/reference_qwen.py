"""
Qwen in plain torch, written from the architecture's description and by no code of this project, to compare with.

`tests/data/tiny_qwen` holds outputs of the reference implementation itself; this covers sizes that it does not.
"""
import math

import torch

F = torch.nn.functional


def random_weights(config, seed=0):
    """Hugging Face names -> float32 tensors of a random Qwen. `config` holds config.json's keys."""
    generator = torch.Generator().manual_seed(seed)
    hidden, width = config["hidden_size"], config["num_attention_heads"] * config["kv_channels"]
    branch = config["intermediate_size"] // 2

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.5 / math.sqrt(shape[-1])

    weights = {"transformer.wte.weight": normal(config["vocab_size"], hidden) * 8,
               "transformer.ln_f.weight": 1 + normal(hidden),
               "lm_head.weight": normal(config["vocab_size"], hidden) * 4}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (("attn.c_attn.weight", (3 * width, hidden)), ("attn.c_attn.bias", (3 * width,)),
                            ("attn.c_proj.weight", (hidden, width)), ("mlp.w1.weight", (branch, hidden)),
                            ("mlp.w2.weight", (branch, hidden)), ("mlp.c_proj.weight", (hidden, branch))):
            weights[f"transformer.h.{layer}.{name}"] = normal(*shape) * 2
        for name in ("ln_1.weight", "ln_2.weight"):
            weights[f"transformer.h.{layer}.{name}"] = 1 + normal(hidden)
    return weights


def forward(config, weights, ids, prompt_length=None):
    """
    Logits [S, vocab_size] of one sequence `ids` [S]; NTK goes by `prompt_length` (default S), as fixed at prefill.
    """
    length, heads, size = len(ids), config["num_attention_heads"], config["kv_channels"]
    window, base = config["seq_length"], float(config["rotary_emb_base"])
    if config["use_dynamic_ntk"]:
        alpha = max(2 ** math.ceil(math.log2((prompt_length or length) / window) + 1) - 1, 1)
        base *= alpha ** (size / (size - 2))
    angles = torch.outer(torch.arange(length).float(), 1 / base ** (torch.arange(0, size, 2).float() / size))
    cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
    logn = torch.tensor([max(1.0, math.log(i, window)) for i in range(1, length + 1)])[:, None, None]

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"]) * weight

    def rotate(x):
        low, high = x[..., :size // 2], x[..., size // 2:]
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

    x = weights["transformer.wte.weight"][torch.as_tensor(ids)]
    for layer in range(config["num_hidden_layers"]):
        w = {name.split(".", 3)[3]: value for name, value in weights.items()
             if name.startswith(f"transformer.h.{layer}.")}
        mixed = F.linear(norm(x, w["ln_1.weight"]), w["attn.c_attn.weight"], w["attn.c_attn.bias"])
        q, k, v = (part.view(length, heads, size) for part in mixed.chunk(3, -1))
        q, k = rotate(q), rotate(k)
        if config["use_logn_attn"]:
            q = q * logn
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, -1)
        x = x + F.linear(out, w["attn.c_proj.weight"])
        y = norm(x, w["ln_2.weight"])
        gated = F.linear(y, w["mlp.w1.weight"]) * F.silu(F.linear(y, w["mlp.w2.weight"]))
        x = x + F.linear(gated, w["mlp.c_proj.weight"])
    return F.linear(norm(x, weights["transformer.ln_f.weight"]), weights["lm_head.weight"])


def greedy(config, weights, prompt, new_tokens):
    """Ids [new_tokens] that follow `prompt`, and the logits [new_tokens, vocab_size] that chose them."""
    ids, chosen = list(prompt), []
    for _ in range(new_tokens):
        chosen.append(forward(config, weights, ids, len(prompt))[-1])
        ids.append(int(chosen[-1].argmax()))
    return ids[len(prompt):], torch.stack(chosen)
