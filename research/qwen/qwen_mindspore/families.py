"""
The families of models as data: their sizes, and the name, shape, bias and split of every tensor.

All that differs between one Llama-like family and another stands in its table here; the converters (Hugging Face,
AutoGPTQ, GGUF), the quantizer, the benchmark's peers and the loaders read it, and the model takes its sizes from it. To
add a family, write its table after `QWEN` and put it into `FAMILIES`. The graph of `model.graph` is Qwen's so far: as
many key/value heads as heads, with biases.

A name is given without `.weight` and `.bias`. Where several modules have one name on a side, they are one tensor there:
their rows stacked in the order of the table, as those of q, k and v in Qwen's `c_attn`. Weights are [out, in] on every
side. Beside the kinds of values this module imports nothing but the standard library.
"""
import reprlib
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from qwen_mindspore.common.kinds import COUNT, FLAG, Kind, integer, optional, read_as, unquoted

__all__ = ["FAMILIES", "QWEN", "SIDES", "Family", "Keys", "Module", "Sizes", "Tensor", "family_of"]

SIDES = ("ms", "hf", "gguf", "qwen2")
SIZE = unquoted(COUNT)
LAYERS = unquoted(Kind("an integer from 1 to 10000", integer(1, 10_000)))  # more is damage: nobody wants those listed


class Module(NamedTuple):
    """
    A linear, a norm or an embedding.

    Args:
        role (str): What it is, by the same word in every family.
        ms (str): Its name in MindSpore's checkpoints and in the model.
        hf (str): In Hugging Face's checkpoints.
        gguf (str): In llama.cpp's files.
        qwen2 (str): In transformers' Qwen2, which computes the same with q, k and v apart.
        shape (tuple[str]): The weight's, by the names of `Sizes`.
        split (int): The axis along which the weight is divided among devices: 0, by outputs, and the bias with it; 1,
            by inputs: the results are summed up, and each device has the whole bias; None: each has it whole.
        bias (bool): It has one.
        ms_weight (str): What MindSpore's side calls its weight.
    """

    role: str
    ms: str
    hf: str
    gguf: str
    qwen2: str
    shape: tuple
    split: int | None
    bias: bool = False
    ms_weight: str = "weight"


class Tensor(NamedTuple):
    """
    A tensor of a whole model: `names` by side, with the layer's number in them; `shape` in numbers; see `Module`.

    Args:
        kind (str): "weight" or "bias".
    """

    role: str
    layer: int | None
    kind: str
    names: dict
    shape: tuple
    split: int | None


class Keys(NamedTuple):
    """
    How a family's config.json calls what differs.

    Args:
        head_size (str): The size of a head; where a config lacks it: hidden_size / num_attention_heads.
        kv_heads (str): Heads of keys and values; None, or where a config lacks it: as many as of queries.
        ffn_branches (int): How many of the feed-forward's branches `intermediate_size` counts.
        epsilon (str): The norms'.
        theta (str): The base of the rotary embedding.
        tied (bool): Whether the head is the embedding where `tie_word_embeddings` is not given.
    """

    head_size: str
    kv_heads: str | None
    ffn_branches: int
    epsilon: str
    theta: str
    tied: bool


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. `vocab`, `hidden`, `query`, `kv` and `ffn` are those of which shapes are made."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    tied: bool

    @property
    def query(self):
        """Outputs of q, of all heads."""
        return self.heads * self.head_size

    @property
    def kv(self):
        """Outputs of k, and of v."""
        return self.kv_heads * self.head_size


@dataclass(frozen=True)
class Family:
    """
    A family of models.

    Args:
        model_type (str): What its config.json says.
        title (str): What messages add to that.
        keys (Keys): How sizes come from its config.json.
        prefixes (dict): Side -> what comes before the names of a layer's modules, {} for its number.
        before, layer, after (tuple[Module]): The modules before the layers, of one layer, and after the layers.
        buffers (str): Pattern of what its Hugging Face checkpoints may hold beside weights, and the model makes anew.
    """

    model_type: str
    title: str
    keys: Keys
    prefixes: dict
    before: tuple
    layer: tuple
    after: tuple
    buffers: str

    @cached_property
    def modules(self):
        """Role -> Module."""
        return {module.role: module for module in (*self.before, *self.layer, *self.after)}

    def prefix(self, side, layer):
        """What the names of a layer's tensors begin with. `layer` may be a pattern: "*"."""
        return self.prefixes[side].format(layer)

    def name(self, role, side, layer=None):
        """The name of a module on a side, without `.weight`; `layer` is the number of its layer, if it is in one."""
        module = self.modules[role]
        return getattr(module, side) if layer is None else self.prefix(side, layer) + getattr(module, side)

    def head_name(self, side, tied):
        """The name of what gives the logits: the head, or the embedding where the two are tied."""
        return self.name("embedding" if tied else "head", side)

    def ffn_width(self, intermediate_size):
        """The width of one branch of the feed-forward."""
        return intermediate_size // self.keys.ffn_branches

    def head_size(self, hidden, heads, given=None):
        """
        The size of a head: as given, or what divides the hidden size among the heads; ValueError where that fails.
        """
        if given is None and hidden % heads:
            raise ValueError(f"hidden_size: {hidden} is not a multiple of the {heads} attention heads; give "
                             f"{self.keys.head_size}, the size of a head")
        return hidden // heads if given is None else given

    def sizes(self, config):
        """
        Args:
            config (dict): A config.json.

        Returns:
            Sizes.

        Raises:
            ValueError: A size is missing, is no positive integer, or is not a multiple of another.
        """
        hidden, heads = _read(config, "hidden_size"), _read(config, "num_attention_heads")
        ffn = _read(config, "intermediate_size")
        if ffn % self.keys.ffn_branches:
            raise ValueError(f"config.json: intermediate_size is {ffn}, expected a multiple of "
                             f"{self.keys.ffn_branches}, of the branches that it counts")
        kv_heads = _read(config, self.keys.kv_heads, optional(SIZE)) or heads
        if heads % kv_heads:
            raise ValueError(f"config.json: num_attention_heads is {heads}, expected a multiple of "
                             f"{self.keys.kv_heads}, {kv_heads}")
        head_size = _read(config, self.keys.head_size, optional(SIZE))
        try:
            head_size = self.head_size(hidden, heads, head_size)
        except ValueError as error:
            raise ValueError(f"config.json: {error}") from None
        tied = _read(config, "tie_word_embeddings", optional(FLAG))
        return Sizes(_read(config, "vocab_size"), hidden, _read(config, "num_hidden_layers", LAYERS), heads,
                     kv_heads, head_size, self.ffn_width(ffn), self.keys.tied if tied is None else tied)

    def tensors(self, config):
        """
        Every Tensor of an unquantized model, in its order; no head where it is the embedding. Of modules that are one
        on Hugging Face's side the weights come first, then the biases. See `sizes`.
        """
        sizes = self.sizes(config)
        after = [module for module in self.after if not (sizes.tied and module.role == "head")]
        parts = [(self.before, None), *((self.layer, layer) for layer in range(sizes.layers)), (after, None)]
        return [tensor for modules, layer in parts for _, stack in groupby(modules, lambda module: module.hf)
                for tensor in self._tensors_of(list(stack), layer, sizes)]

    def _tensors_of(self, modules, layer, sizes):
        for module in modules:
            names = {side: f"{self.name(module.role, side, layer)}.weight" for side in SIDES}
            names["ms"] = names["ms"].removesuffix("weight") + module.ms_weight
            shape = tuple(getattr(sizes, size) for size in module.shape)
            yield Tensor(module.role, layer, "weight", names, shape, module.split)
        for module in modules:
            if module.bias:
                names = {side: f"{self.name(module.role, side, layer)}.bias" for side in SIDES}
                yield Tensor(module.role, layer, "bias", names, (getattr(sizes, module.shape[0]),),
                             0 if module.split == 0 else None)


def _read(config, key, kind=SIZE):
    return read_as(kind, f"config.json: {key}", config.get(key))


# Source: https://huggingface.co/Qwen/Qwen-7B/blob/main/modeling_qwen.py; the MindSpore names are those of the published
# MindFormers Qwen checkpoints, the GGUF names those of llama.cpp's architecture "qwen". The gate is `w2` in Hugging
# Face's Qwen and `w3` in MindFormers', whose `w2` is the projection back.
QWEN = Family(
    model_type="qwen",
    title="the first generation",
    keys=Keys(head_size="kv_channels", kv_heads=None, ffn_branches=2, epsilon="layer_norm_epsilon",
              theta="rotary_emb_base", tied=False),
    prefixes={"ms": "transformer.layers.{}.", "hf": "transformer.h.{}.", "gguf": "blk.{}.",
              "qwen2": "model.layers.{}."},
    before=(
        Module("embedding", "transformer.wte", "transformer.wte", "token_embd", "model.embed_tokens",
               ("vocab", "hidden"), 0, ms_weight="embedding_weight"),
    ),
    layer=(
        #      role              MindSpore          Hugging Face   GGUF           Qwen2               shape       split
        Module("attention_norm", "attention_norm",  "ln_1",        "attn_norm",   "input_layernorm",
               ("hidden",), None),
        Module("q",              "attention.wq",    "attn.c_attn", "attn_qkv",    "self_attn.q_proj",
               ("query", "hidden"), 0, bias=True),
        Module("k",              "attention.wk",    "attn.c_attn", "attn_qkv",    "self_attn.k_proj",
               ("kv", "hidden"), 0, bias=True),
        Module("v",              "attention.wv",    "attn.c_attn", "attn_qkv",    "self_attn.v_proj",
               ("kv", "hidden"), 0, bias=True),
        Module("o",              "attention.wo",    "attn.c_proj", "attn_output", "self_attn.o_proj",
               ("hidden", "query"), 1),
        Module("ffn_norm",       "ffn_norm",        "ln_2",        "ffn_norm",    "post_attention_layernorm",
               ("hidden",), None),
        Module("up",             "feed_forward.w1", "mlp.w1",      "ffn_up",      "mlp.up_proj",
               ("ffn", "hidden"), 0),
        Module("gate",           "feed_forward.w3", "mlp.w2",      "ffn_gate",    "mlp.gate_proj",
               ("ffn", "hidden"), 0),
        Module("down",           "feed_forward.w2", "mlp.c_proj",  "ffn_down",    "mlp.down_proj",
               ("hidden", "ffn"), 1),
    ),
    after=(
        Module("norm", "transformer.ln_f", "transformer.ln_f", "output_norm", "model.norm", ("hidden",), None),
        Module("head", "lm_head", "lm_head", "output", "lm_head", ("vocab", "hidden"), 0),
    ),
    buffers=r"\.(rotary_emb\.inv_freq|attn\.(bias|masked_bias|logn_tensor))$",
)

FAMILIES = {family.model_type: family for family in (QWEN,)}


def family_of(config, place="config.json"):
    """
    The Family of a config.json.

    Args:
        config (dict): Its content.
        place (str | Path): What the message calls it.

    Raises:
        ValueError: It is of no family that is known here.
    """
    found = config.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        known = " or ".join(f"{family.model_type!r} ({family.title})" for family in FAMILIES.values())
        raise ValueError(f"{place}: model_type: expected {known}, found {reprlib.repr(found)}")
    return FAMILIES[found]
