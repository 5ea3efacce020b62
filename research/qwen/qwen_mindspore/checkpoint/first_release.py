"""
The keys of a config.json of the first release (August 2023), which later ones call otherwise.

Source: configuration_qwen.py of https://huggingface.co/Qwen/Qwen-7B before September 2023; its `ffn_hidden_size` is
what is `intermediate_size` today, both branches of the feed-forward together, and its model has an embedding of
`padded_vocab_size` rows.
"""
from qwen_mindspore.common.text import shown

__all__ = ["RENAMED", "in_todays_words"]

# First release -> today.
RENAMED = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "embd_pdrop": "emb_dropout_prob",
    "attn_pdrop": "attn_dropout_prob",
    "padded_vocab_size": "vocab_size",
}
MARKS = ("n_embd", "n_layer", "n_head")  # only the first release has these

# What a config of the first release means by leaving a key out, where today's default is another.
DEFAULTS = {"layer_norm_epsilon": 1e-5, "use_dynamic_ntk": False, "use_logn_attn": False}

# What decides what the model computes and has no key today: key -> what it is in every Qwen.
FIXED = {"n_inner": None, "activation": "swiglu", "pos_emb": "rotary",
         "apply_residual_connection_post_layernorm": False}
# What says nothing of the model.
WITHOUT_EFFECT = ("bias_dropout_fusion", "params_dtype", "resid_pdrop")


def in_todays_words(config, path="config.json"):
    """
    The dict of a config.json with today's keys; one of today is returned as it is.

    Args:
        config (dict): Its content.
        path (str | Path): What messages call it.

    Raises:
        ValueError: An old key contradicts today's, or the config describes a model that no Qwen is.
    """
    is_first = any(key in config for key in MARKS)
    if not is_first and not RENAMED.keys() & config.keys():
        return config
    for key, fixed in FIXED.items():
        if is_first and config.get(key, fixed) != fixed:
            raise ValueError(f"{path}: {key}: expected {fixed!r}, as in every Qwen, found {shown(config[key])}")
    without = {*RENAMED, *((*FIXED, *WITHOUT_EFFECT) if is_first else ())}
    today = {key: value for key, value in config.items() if key not in without}
    for old, new in RENAMED.items():
        if config.get(old) is not None:
            _rename(config, today, old, new, path)
    if not is_first:
        return today
    dtype = config.get("params_dtype")
    if isinstance(dtype, str):
        today.setdefault("torch_dtype", dtype.removeprefix("torch."))
    return {**DEFAULTS, **today}


def _rename(config, today, old, new, path):
    """Give a value its name of today."""
    value, other = config[old], config.get(new)
    if other is None or other == value or (old == "padded_vocab_size" and _is_less(other, value)):
        today[new] = value
    elif old == "ffn_hidden_size":  # this project's own word for the width of one branch: `QwenConfig` compares
        today[old] = value
    else:
        raise ValueError(f"{path}: {old} is {shown(value)}, but {new}, which says the same, is {shown(other)}: give "
                         "one")


def _is_less(vocab, padded):
    return isinstance(vocab, int) and isinstance(padded, int) and vocab < padded
