"""
The keys of a `QwenConfig`: which there are, and which values each takes.

A configuration is written by hand, so a misspelt key or a value that can't be meant is refused by name. What this
implementation reads stands in `common.keys`, the kinds of values in `common.kinds`.
"""
import inspect

import mindspore as ms
from mindformers.generation.generation_config import GenerationConfig
from mindformers.models.llama.llama_config import LlamaConfig

from qwen_mindspore.common.keys import MODEL, QWEN_NAMES
from qwen_mindspore.common.kinds import DTYPE, FLAG, INTEGER, NUMBER, TEXT, optional, read_as
from qwen_mindspore.common.text import closest, shown

__all__ = ["HF_ONLY", "KINDS", "QWEN_NAMES", "check_key", "checked", "is_known"]

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


def _unused():
    """The keys of MindFormers that change nothing here: of the type of their default."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(LlamaConfig).parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD}
    defaults.update(vars(GenerationConfig()))
    kinds = {bool: FLAG, int: INTEGER, float: NUMBER, str: TEXT}
    found = {name: optional(kinds[type(default)]) for name, default in defaults.items()
             if type(default) in kinds and name not in MINDFORMERS_KEYS}
    dtypes = {name: optional(DTYPE) if default is None else DTYPE for name, default in defaults.items()
              if name.endswith(("_dtype", "_compute_type", "_init_type"))}
    return {**found, **dtypes}


KINDS = {**_unused(), **MODEL}
UNCHECKED = (HF_ONLY | MINDFORMERS_KEYS | {"min_new_tokens"}) - KINDS.keys()


def is_known(key):
    """Whether a config has such a key, under either name."""
    return QWEN_NAMES.get(key, key) in KINDS or key in UNCHECKED


def check_key(key):
    """Raises ValueError for a key that no config has, with the one that it may be a misspelling of."""
    if not is_known(key):
        names = sorted({*KINDS, *UNCHECKED, *QWEN_NAMES})
        near = closest(key, names)
        name = key if str(key).isprintable() and len(str(key)) <= 60 else shown(key)
        raise ValueError(f"{name}: no such key of a QwenConfig" + (f"; did you mean {near}?" if near else ""))


def checked(key, value):
    """
    A value as it is meant: a number that is written as a text ("1e-5"), "true" and "false", the name of a type.

    Args:
        key (str): Under either name.

    Raises:
        ValueError: The key takes no such value.
    """
    kind = KINDS.get(QWEN_NAMES.get(key, key))
    if kind is None:
        return value
    read = read_as(kind, key, value)
    return getattr(ms, read) if kind.read is DTYPE.read and read is not None else read
