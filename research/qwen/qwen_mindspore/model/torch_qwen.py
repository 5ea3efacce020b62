"""Qwen in plain torch, float32: what benchmark.py measures beside this project's model, and quantize.py computes with.

It computes as the reference code does (modeling_qwen.py of the released checkpoints, scaled_dot_product_attention
included), but takes the head of the last position only. Dynamic NTK and LogN are left out: within the length that a
model was trained with they change nothing.
"""
import json
from pathlib import Path

import torch
import torch.nn.functional as F


class TorchQwen:
    """A Qwen on the CPU.

    Args:
        config: the dict of a Hugging Face Qwen config.json.
        weights: {Hugging Face name: float32 tensor}; read only when they are needed, so a part may do.
    """

    def __init__(self, config, weights):
        self.weights = weights
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.epsilon = config["layer_norm_epsilon"]
        head_size = config.get("kv_channels") or config["hidden_size"] // self.heads
        self.frequencies = config["rotary_emb_base"] ** -(torch.arange(0, head_size, 2) / head_size)
        self.head_name = "transformer.wte" if config.get("tie_word_embeddings") else "lm_head"

    @classmethod
    def from_folder(cls, folder):
        """Load a Hugging Face folder: config.json and safetensors."""
        from safetensors.torch import load_file

        weights = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            weights |= {name: tensor.float() for name, tensor in load_file(file).items()}
        return cls(json.loads(Path(folder, "config.json").read_text(encoding="utf-8")), weights)

    @property
    def head(self):
        """The head's weight [vocab_size, hidden]."""
        return self.weights[self.head_name + ".weight"]

    @torch.inference_mode()
    def logits(self, ids, cache, last_only=False):
        """Logits of ids [B, S], which follow on what is in the cache.

        Args:
            ids: int64 tensor.
            cache: {layer: (keys, values) [B, heads, tokens, head size]}, which grows by S tokens; at first {}.
            last_only: of the last position only.

        Returns:
            Tensor [B, S or 1, vocab_size].
        """
        rotation = self.rotation(cache[0][0].shape[2] if cache else 0, ids.shape[1])
        x = F.embedding(ids, self.weights["transformer.wte.weight"])
        for layer in range(self.layers):
            prefix = f"transformer.h.{layer}."
            y = self.norm(prefix + "ln_1", x)
            x = x + self.linear(prefix + "attn.c_proj", self.attend(prefix, y, rotation, cache, layer))
            y = self.norm(prefix + "ln_2", x)
            x = x + self.linear(prefix + "mlp.c_proj", self.gate(prefix, y))
        return self.linear(self.head_name, self.norm("transformer.ln_f", x[:, -1:] if last_only else x))

    def greedy(self, prompts, new_tokens):
        """Yield the next id of each sequence, a list of B ints, `new_tokens` times; prompts [B][S] of one length."""
        ids, cache = torch.tensor(prompts), {}
        for _ in range(new_tokens):
            ids = self.logits(ids, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
            yield ids[:, 0].tolist()

    def rotation(self, first, count):
        """cos and sin [count, head size] of `count` positions from `first` on."""
        angles = torch.outer(torch.arange(first, first + count), self.frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()

    def norm(self, name, x):
        """x / rms(x) * weight."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weights[name + ".weight"]

    def linear(self, name, x):
        """x @ weight.T + bias."""
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def attend(self, prefix, x, rotation, cache, layer):
        """What the heads give, [B, S, heads * head size], before it is projected."""
        qkv = self.linear(prefix + "attn.c_attn", x)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        if layer in cache:
            key, value = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (key, value)))
        cache[layer] = key, value
        # The tokens of one call are a whole prompt or a single token, which sees all that is in the cache.
        out = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)
        return out.transpose(1, 2).flatten(2)

    def gate(self, prefix, x):
        """w1(x) * silu(w2(x)), what the feed-forward gives before it is projected."""
        return self.linear(prefix + "mlp.w1", x) * F.silu(self.linear(prefix + "mlp.w2", x))


def _rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin
