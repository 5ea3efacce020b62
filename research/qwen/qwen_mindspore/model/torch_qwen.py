"""Qwen in plain torch, float32: what benchmark.py measures beside this project's model, and quantize.py computes with.

It computes as the reference code does (modeling_qwen.py of the released checkpoints, scaled_dot_product_attention
included), but takes the head of the last position only. Dynamic NTK and LogN are left out: within the length that a
model was trained with they change nothing.
"""
from pathlib import Path

import torch
import torch.nn.functional as F

from qwen_mindspore.checkpoint.files import HUGGING_FACE, Checkpoint, check_tensors, checkpoint_files, read_config
from qwen_mindspore.checkpoint.names import ms_to_hf
from qwen_mindspore.families import family_of


class TorchQwen:
    """A Qwen on the CPU.

    Args:
        config: the dict of a Hugging Face config.json.
        weights: {Hugging Face name: float32 tensor}; read only when they are needed, so a part may do.
    """

    def __init__(self, config, weights):
        self.weights, self.family = weights, family_of(config)
        self.sizes, keys = self.family.sizes(config), self.family.keys
        self.layers = self.sizes.layers
        self.epsilon = config[keys.epsilon]
        head_size = self.sizes.head_size
        self.frequencies = config[keys.theta] ** -(torch.arange(0, head_size, 2) / head_size)
        self.head_name = self.family.head_name("hf", self.sizes.tied)
        self._names = {(module.role, layer): self.family.name(module.role, "hf", layer)
                       for layer in range(self.layers) for module in self.family.layer}
        self._names |= {(module.role, None): module.hf for module in (*self.family.before, *self.family.after)}

    @classmethod
    def from_folder(cls, folder):
        """Load a Hugging Face folder: config.json and the weights."""
        config = read_config(Path(folder, "config.json"))
        checkpoint = Checkpoint(checkpoint_files(folder, HUGGING_FACE))
        check_tensors(checkpoint, ms_to_hf(config))
        weights = {name: checkpoint.read(name, 0, stored.shape[0]).float()
                   for name, stored in checkpoint.tensors.items() if stored.shape}
        return cls(config, weights)

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
        x = F.embedding(ids, self.weights[self.name("embedding") + ".weight"])
        for layer in range(self.layers):
            y = self.norm(self.name("attention_norm", layer), x)
            x = x + self.linear(self.name("o", layer), self.attend(layer, y, rotation, cache))
            y = self.norm(self.name("ffn_norm", layer), x)
            x = x + self.linear(self.name("down", layer), self.gate(layer, y))
        return self.linear(self.head_name, self.norm(self.name("norm"), x[:, -1:] if last_only else x))

    def greedy(self, prompts, new_tokens):
        """Yield the next id of each sequence, a list of B ints, `new_tokens` times; prompts [B][S] of one length."""
        ids, cache = torch.tensor(prompts), {}
        for _ in range(new_tokens):
            ids = self.logits(ids, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
            yield ids[:, 0].tolist()

    def name(self, role, layer=None):
        """The Hugging Face name of a module, see `families`."""
        return self._names[role, layer]

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

    def attend(self, layer, x, rotation, cache):
        """What the heads give, [B, S, heads * head size], before it is projected."""
        query, key, value = (part.unflatten(-1, (-1, self.sizes.head_size)).transpose(1, 2)
                             for part in self.query_key_value(layer, x))
        query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        if layer in cache:
            key, value = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (key, value)))
        cache[layer] = key, value
        # The tokens of one call are a whole prompt or a single token, which sees all that is in the cache.
        out = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1,
                                             enable_gqa=self.sizes.kv_heads < self.sizes.heads)
        return out.transpose(1, 2).flatten(2)

    def query_key_value(self, layer, x):
        """q, k and v of x, be they one linear or several."""
        widths = {"q": self.sizes.query, "k": self.sizes.kv, "v": self.sizes.kv}
        linears = {}
        for role, width in widths.items():
            linears.setdefault(self.name(role, layer), []).append(width)
        return [part for name, parts in linears.items() for part in self.linear(name, x).split(parts, -1)]

    def gate(self, layer, x):
        """up(x) * silu(gate(x)), what the feed-forward gives before it is projected."""
        return self.linear(self.name("up", layer), x) * F.silu(self.linear(self.name("gate", layer), x))


def _rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin
