"""
The keys of a `QwenConfig`: which there are, and which values each takes.

A configuration is written by hand, so a misspelt key or a value of another type is refused by name: a `use_dynamic_ntk`
of "false" that counts as true, or a `rms_norm_eps` of "1e-6", which is how YAML reads 1e-6, would otherwise give wrong
answers or an error far from its cause.
"""
import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
from mindformers.generation.generation_config import GenerationConfig
from mindformers.models.llama.llama_config import LlamaConfig

from qwen_mindspore.common.text import shown

__all__ = ["HF_ONLY", "QWEN_NAMES", "check_key", "checked", "is_known"]

# Qwen's own name -> MindFormers' name of the same thing.
QWEN_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "layer_norm_epsilon": "rms_norm_eps",
    "rotary_emb_base": "theta",
    "max_position_embeddings": "max_position_embedding",
    "initializer_range": "init_method_std",
}

# Keys of a Hugging Face config.json that say nothing about this implementation.
HF_ONLY = {"model_type", "auto_map", "transformers_version", "tokenizer_type", "tokenizer_class", "use_cache",
           "use_cache_kernel", "use_flash_attn", "onnx_safe", "softmax_in_fp32", "torch_dtype", "architectures",
           "bf16", "fp16", "fp32", "quantization_config", "_name_or_path"}

# What MindFormers itself puts into a model_config, or writes with `to_dict`; its own affair.
MINDFORMERS_KEYS = {"_commit_hash", "auto_register", "checkpoint_path", "disable_lazy_inline", "is_encoder_decoder",
                    "is_sample_acceleration", "mindformers_version", "model_name", "name_or_path", "num_beams",
                    "parallel_decoding_params", "pet_config", "pretrained_model_dir", "run_mode", "stage_num",
                    "start_stage", "track_max_attention_logit", "type", "use_legacy",
                    # of LlamaConfig's arguments, those with values of several types
                    "extend_method", "llm_backend", "moe_config", "offset", "parallel_config", "pipeline_stage",
                    "quant_config", "scaling_factor"}

DTYPES = {"float16": ms.float16, "bfloat16": ms.bfloat16, "float32": ms.float32}


@dataclass(frozen=True)
class Kind:
    """
    The values that a key takes.

    Attributes:
        expected (str): In words, for the message.
        read (function): The value as it is meant; raises ValueError or TypeError for another.
        optional (bool): None is one of them.
    """

    expected: str
    read: Callable
    optional: bool = False


def _optional(kind):
    return Kind(f"{kind.expected} or None", kind.read, True)


def _require(fits):
    if not fits:
        raise ValueError


def _flag(value):
    if isinstance(value, str):
        return {"true": True, "false": False}[value.strip().lower()]
    _require(value in (0, 1))
    return bool(value)


def _integer(lowest=None):
    def read(value):
        _require(isinstance(value, numbers.Integral) and not isinstance(value, bool))
        _require(lowest is None or value >= lowest)
        return int(value)

    return read


def _number(fits=lambda value: True):
    def read(value):
        _require(isinstance(value, (str, numbers.Real)) and not isinstance(value, bool))
        number = value if type(value) in (int, float) else float(value)
        _require(math.isfinite(number) and fits(number))
        return number

    return read


def _choice(*names):
    def read(value):
        _require(isinstance(value, str) and value in names)
        return value

    return read


def _path(value):
    _require(isinstance(value, (str, os.PathLike)))
    return os.fspath(value)


def _text(value):
    _require(isinstance(value, str))
    return value


def _token_ids(value):
    return [TOKEN_ID.read(item) for item in value] if isinstance(value, (list, tuple)) else TOKEN_ID.read(value)


FLAG = Kind("true or false", _flag)
INTEGER = Kind("an integer", _integer())
COUNT = Kind("a positive integer", _integer(1))
COUNT_OR_0 = Kind("an integer from 0", _integer(0))
NUMBER = Kind("a number", _number())
POSITIVE = Kind("a number above 0", _number(lambda value: value > 0))
NOT_NEGATIVE = Kind("a number from 0", _number(lambda value: value >= 0))
SHARE = Kind("a number above 0, up to 1", _number(lambda value: 0 < value <= 1))
DROPOUT = Kind("a number from 0, below 1", _number(lambda value: 0 <= value < 1))
TOKEN_ID = Kind("a token id, -1 for none", _integer(-1))
TOKEN_IDS = Kind("a token id, -1 for none, a list of them", _token_ids)
DTYPE = Kind("float16, bfloat16 or float32", lambda value: DTYPES[str(value).lower()])
TEXT = Kind("a text", _text)

# What this implementation reads.
USED = {
    **dict.fromkeys(("hidden_size", "num_layers", "num_heads", "vocab_size", "intermediate_size", "seq_length",
                     "batch_size", "block_size", "max_decode_length", "multiple_of"), COUNT),
    **dict.fromkeys(("num_blocks", "n_kv_heads", "kv_channels", "train_seq_length", "max_position_embedding",
                     "ffn_hidden_size", "max_new_tokens", "max_length"), _optional(COUNT)),
    **dict.fromkeys(("use_dynamic_ntk", "use_logn_attn", "use_past", "is_dynamic", "do_sample", "tie_word_embeddings",
                     "use_cache_quantization", "qkv_has_bias", "attn_proj_has_bias", "no_bias",
                     "scale_attn_weights"), FLAG),
    **dict.fromkeys(("rms_norm_eps", "theta", "repetition_penalty", "temperature"), POSITIVE),
    **dict.fromkeys(("emb_dropout_prob", "attn_dropout_prob"), DROPOUT),
    **dict.fromkeys(("compute_dtype", "param_init_type"), DTYPE),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _optional(TOKEN_ID)),
    "eos_token_id": _optional(TOKEN_IDS),
    "ignore_token_id": INTEGER,
    "init_method_std": NOT_NEGATIVE,
    "ffn_dim_multiplier": _optional(POSITIVE),
    "rotary_pct": NUMBER,
    "top_k": COUNT_OR_0,
    "top_p": SHARE,
    "checkpoint_name_or_path": _optional(Kind("a path", _path)),
    "chat_format": _optional(Kind("raw, chatml", _choice("raw", "chatml"))),
    "kernels": TEXT,
    "soc": _optional(TEXT),  # the NPU that the ascend set is for, where there is none to ask
    "quantization": Kind("a dict", lambda value: value, optional=True),  # see checkpoint.packing.Quantization
}


def _unused():
    """The keys of MindFormers that change nothing here: of the type of their default."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(LlamaConfig).parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD}
    defaults.update(vars(GenerationConfig()))
    kinds = {bool: FLAG, int: INTEGER, float: NUMBER, str: TEXT}
    found = {name: _optional(kinds[type(default)]) for name, default in defaults.items()
             if type(default) in kinds and name not in MINDFORMERS_KEYS}
    dtypes = {name for name in defaults if name.endswith(("_dtype", "_compute_type", "_init_type"))}
    return {**found, **dict.fromkeys(dtypes, _optional(DTYPE))}


KINDS = {**_unused(), **USED}
UNCHECKED = (HF_ONLY | MINDFORMERS_KEYS | {"min_new_tokens"}) - KINDS.keys()


def is_known(key):
    """Whether a config has such a key, under either name."""
    return QWEN_NAMES.get(key, key) in KINDS or key in UNCHECKED


def check_key(key):
    """Raises ValueError for a key that no config has, with the one that it may be a misspelling of."""
    if not is_known(key):
        names = sorted({*KINDS, *UNCHECKED, *QWEN_NAMES})
        near = difflib.get_close_matches(str(key), names, n=1)
        name = key if str(key).isprintable() else shown(key)
        raise ValueError(f"{name}: no such key of a QwenConfig" + (f"; did you mean {near[0]}?" if near else ""))


def checked(key, value):
    """
    A value as it is meant: a number that is written as a text ("1e-5"), "true" and "false", the name of a type.

    Args:
        key (str): Under either name.

    Raises:
        ValueError: The key takes no such value.
    """
    kind = KINDS.get(QWEN_NAMES.get(key, key))
    if kind is None or (value is None and kind.optional):
        return value
    try:
        return kind.read(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"{key}: expected {kind.expected}, found {shown(value)}") from None
