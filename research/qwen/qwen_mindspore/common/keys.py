"""
The one table of settings and the kinds of their values: those of a model, in a YAML's `model_config` or a config.json,
and those of a YAML's other sections that are read here or by MindFormers.

A family's own names of sizes stand in `families`.
"""
from qwen_mindspore.common.kinds import (
    CHAT_FORMAT,
    COUNT,
    COUNT_OR_0,
    DROPOUT,
    DTYPE,
    FLAG,
    INTEGER,
    NOT_NEGATIVE,
    NUMBER,
    PATH,
    POSITIVE,
    SHARE,
    TEXT,
    TEXTS,
    TOKEN_ID,
    TOKEN_IDS,
    Kind,
    advised,
    choice,
    one_of,
    optional,
    read_as,
    read_keys,
    section,
)

__all__ = ["MODEL", "QWEN_NAMES", "SECTIONS", "TOKENIZER", "read_config_json", "read_sections"]

# Qwen's own name -> MindFormers' name of the same thing.
QWEN_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "layer_norm_epsilon": "rms_norm_eps",
    "rotary_emb_base": "theta",
    "max_position_embeddings": "max_position_embedding",
    "initializer_range": "init_method_std",
}

QUANTIZATION = section({  # see checkpoint.packing.Quantization, which says what numbers they may be
    "bits": COUNT, "group_size": INTEGER, "quant_method": optional(TEXT), "quantized": optional(TEXTS),
    **dict.fromkeys(("desc_act", "sym"), optional(FLAG)),
})

# Of a model, under MindFormers' names: what this implementation reads.
MODEL = {
    **dict.fromkeys(("hidden_size", "num_layers", "num_heads", "vocab_size", "intermediate_size", "seq_length",
                     "batch_size", "block_size", "max_decode_length", "multiple_of"), COUNT),
    **dict.fromkeys(("num_blocks", "n_kv_heads", "kv_channels", "train_seq_length", "max_position_embedding",
                     "ffn_hidden_size", "max_new_tokens", "max_length"), optional(COUNT)),
    **dict.fromkeys(("use_dynamic_ntk", "use_logn_attn", "use_past", "is_dynamic", "do_sample", "tie_word_embeddings",
                     "use_cache_quantization", "qkv_has_bias", "attn_proj_has_bias", "no_bias",
                     "scale_attn_weights"), FLAG),
    **dict.fromkeys(("rms_norm_eps", "theta"), POSITIVE),
    **dict.fromkeys(("emb_dropout_prob", "attn_dropout_prob"), DROPOUT),
    **dict.fromkeys(("compute_dtype", "param_init_type"), DTYPE),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), optional(TOKEN_ID)),
    "eos_token_id": optional(TOKEN_IDS),
    "ignore_token_id": INTEGER,
    "init_method_std": NOT_NEGATIVE,
    "ffn_dim_multiplier": optional(POSITIVE),
    "rotary_pct": NUMBER,
    "temperature": NOT_NEGATIVE,  # 0: the likeliest token is taken
    "top_k": advised(COUNT_OR_0, ": write 0 to switch it off"),
    "top_p": advised(SHARE, ": write 1 to switch it off"),
    "repetition_penalty": advised(POSITIVE, ": write 1 to switch it off"),
    "checkpoint_name_or_path": optional(PATH),
    "chat_format": optional(CHAT_FORMAT),
    "kernels": TEXT,
    "soc": optional(TEXT),  # the NPU that the ascend set is for, where there is none to ask
    "quantization": optional(Kind("a dict", QUANTIZATION.read)),
}

# Keys of a Hugging Face config.json that say what type it computes in.
HF_FLAGS = ("bf16", "fp16", "fp32")

DEVICE = choice("auto", "CPU", "Ascend")
MODE = one_of(choice("GRAPH_MODE", "PYNATIVE_MODE"), Kind("0, 1", lambda value: (0, 1).index(INTEGER.read(value))))
PARALLEL_MODE = one_of(COUNT_OR_0, TEXT)


def _memory(value):
    number = TEXT.read(value).upper().strip().removesuffix("GB").strip()
    POSITIVE.read(number)
    return f"{number}GB"


# Of a tokenizer, in a YAML or a tokenizer_config.json.
TOKENIZER = {
    **dict.fromkeys(("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token",
                     "system"), optional(TEXT)),
    "additional_special_tokens": optional(TEXTS),
    "errors": optional(choice("replace", "ignore", "strict")),
    **dict.fromkeys(("padding_side", "truncation_side"), optional(choice("left", "right"))),
}

# Of a YAML's other sections. What isn't here is MindFormers' own affair, and stays as it is.
SECTIONS = {
    "seed": optional(COUNT_OR_0),
    "run_mode": optional(choice("predict", "train", "finetune", "eval", "predict_with_train_model")),
    **dict.fromkeys(("output_dir", "load_checkpoint", "src_strategy_path_or_dir"), optional(PATH)),
    "load_ckpt_format": optional(choice("ckpt", "safetensors")),
    **dict.fromkeys(("use_parallel", "auto_trans_ckpt", "only_save_strategy", "resume_training", "do_eval"),
                    optional(FLAG)),
    "trainer": optional(section({"type": optional(TEXT), "model_name": optional(TEXT)})),
    "processor": optional(section({
        "type": optional(TEXT), "return_tensors": optional(choice("ms", "np")),
        "tokenizer": optional(section({
            "type": optional(TEXT), "vocab_file": optional(PATH), "model_max_length": optional(COUNT), **TOKENIZER})),
    })),
    "context": optional(section({
        "mode": optional(MODE), "device_target": optional(DEVICE), "device_id": optional(COUNT_OR_0),
        "max_device_memory": optional(Kind("a size as 28GB", _memory)), "max_call_depth": optional(COUNT),
        "enable_graph_kernel": optional(FLAG), "ascend_config": optional(section({"precision_mode": optional(TEXT)})),
    })),
    "parallel": optional(section({
        "parallel_mode": optional(PARALLEL_MODE),
        **dict.fromkeys(("gradients_mean", "enable_alltoall", "full_batch", "enable_parallel_optimizer"),
                        optional(FLAG)),
    })),
    "parallel_config": optional(section({
        **dict.fromkeys(("data_parallel", "model_parallel", "context_parallel", "pipeline_stage", "expert_parallel",
                         "micro_batch_num", "gradient_aggregation_group"), optional(COUNT)),
        **dict.fromkeys(("vocab_emb_dp", "use_seq_parallel"), optional(FLAG)),
    })),
    "micro_batch_interleave_num": optional(COUNT),
    "runner_config": optional(section({
        **dict.fromkeys(("epochs", "batch_size", "gradient_accumulation_steps"), optional(COUNT)),
        "sink_mode": optional(FLAG), "sink_size": optional(INTEGER),
    })),
}


def read_config_json(values, path):
    """
    The values of a Hugging Face config.json, or of a `model_config` under either name, each as it is meant. None says
    nothing, and what is not in the table is left alone: other programs keep theirs there.

    Args:
        values (dict): The file's content.
        path (str | Path): The file, and its section, for the message.

    Raises:
        ValueError: See `kinds.read_as`.
    """
    table = {**MODEL, **dict.fromkeys(HF_FLAGS, FLAG)}
    return {key: value if value is None or QWEN_NAMES.get(key, key) not in table
            else read_as(table[QWEN_NAMES.get(key, key)], f"{path}: {key}", value) for key, value in values.items()}


def read_sections(values, path):
    """The same of a whole YAML, its model's section aside. Raises ValueError, see `kinds.read_as`."""
    return read_keys(SECTIONS, values, f"{path}: ")
