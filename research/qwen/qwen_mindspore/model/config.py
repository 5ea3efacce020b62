"""The configuration of a Qwen model (first generation: 1.8B, 7B, 14B, 72B)."""
from pathlib import Path

import yaml
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.tools.logger import logger
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from qwen_mindspore.checkpoint.files import read_config as read_released_config
from qwen_mindspore.checkpoint.packing import EMBEDDING, HEAD, Quantization
from qwen_mindspore.common.configs import check_section, read_config
from qwen_mindspore.common.files import replacing
from qwen_mindspore.common.keys import MODEL
from qwen_mindspore.common.kinds import DTYPE, optional, read_as
from qwen_mindspore.common.text import shown
from qwen_mindspore.families import QWEN
from qwen_mindspore.model.config_keys import HF_ONLY, KINDS, QWEN_NAMES, check_key, checked, is_known
from qwen_mindspore.model.released import check_sizes, find_token_ids

__all__ = ["QwenConfig"]

# Where Qwen-7B differs from LlamaConfig's defaults.
QWEN_DEFAULTS = {
    "seq_length": 8192,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "qkv_has_bias": True,
    "init_method_std": 0.02,
    "num_blocks": None,
    "is_dynamic": True,
    "do_sample": False,
    "top_k": 0,
    "top_p": 0.8,
    "max_decode_length": 512,
}

# What the architecture fixes: a config that says otherwise describes another model.
QWEN_CONSTANTS = {
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "no_bias": True,
    "qkv_has_bias": True,
    "attn_proj_has_bias": False,
    "attn_dropout_prob": 0.0,
}

# What is of no meaning in a QwenConfig, though it stands in files that one is read from.
NOT_KEPT = (HF_ONLY | {"mindformers_version", "type"}) - {"architectures", "tokenizer_class", "quantization_config",
                                                          "_name_or_path"}


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class QwenConfig(LlamaConfig):
    """
    A `LlamaConfig` that speaks Qwen: every key of `LlamaConfig` and of a released `config.json` is accepted, under
    either name (`num_layers` or `num_hidden_layers`, `theta` or `rotary_emb_base`, ...); both may also be read and
    set as attributes. The defaults are Qwen-7B's. Keys with a meaning of their own here:

    Args:
        seq_length (int): What the model can hold: the most tokens of one prompt and its answer together. As
            everywhere in MindFormers; the key/value cache is sized by it. Default: 8192.
        train_seq_length (int): The length the model was trained with, which `config.json` calls `seq_length`:
            dynamic NTK and LogN attention begin beyond it. Default: `seq_length`.
        max_position_embedding (int): An upper limit of `seq_length`. Default: `seq_length`.
        intermediate_size (int): As in `config.json`, *twice* the width of `w1` and `w2`; `ffn_hidden_size` is the
            width of one of them. Default: 22016.
        kv_channels (int): The size of one attention head. Default: `hidden_size / num_heads`.
        use_dynamic_ntk (bool): Stretch the rotary base for prompts beyond `train_seq_length`. Default: True.
        use_logn_attn (bool): Scale queries at positions beyond `train_seq_length`. Default: True.
        batch_size (int): The most sequences generated at once with `use_past`. Default: 1.
        block_size (int): Tokens in a block of the paged key/value cache. Default: 16.
        num_blocks (int): Blocks of the cache. Default: just as many as `batch_size` sequences of `seq_length` need.
        compute_dtype, param_init_type (str): float16, bfloat16 or float32, on an NPU; a CPU computes in float32.
        emb_dropout_prob (float): Dropout of the embeddings in training. Default: 0.
        tie_word_embeddings (bool): The head is the embedding. Default: False.
        chat_format (str): "raw" for a base model, "chatml" for a chat model, None where nobody said. Default: "raw".
        kernels (str): The kernel set: "auto" or a name listed in `kernels`. Default: "auto".
        use_cache_quantization (bool): Keep keys and values in 8 bits: a quarter of a float32 cache, and half of a
            16-bit one, scales aside. Only with `use_past`. Default: False.
        quantization (dict): How weights are quantized: see `checkpoint.packing.Quantization`. A checkpoint's
            config.json says it as well, and that is enough. Default: None, they are not.

    Raises:
        ValueError: A key that there isn't, a value that its key doesn't take, two names of one thing with different
            values, sizes that don't fit each other, or a setting that no Qwen has. See `model.config_keys`.

    Source: https://huggingface.co/Qwen/Qwen-7B/blob/main/configuration_qwen.py
    """

    model_type = QWEN.model_type
    attribute_map = QWEN_NAMES

    def __init__(self, **kwargs):
        values = {**QWEN_DEFAULTS, **_to_mindformers_names(_checked(kwargs))}
        for key, fixed in QWEN_CONSTANTS.items():
            if values.get(key, fixed) != fixed:
                raise ValueError(f"{key}: expected {fixed}, as in every Qwen this model can build, "
                                 f"found {values[key]}")
        extra = {key: values.pop(key, default) for key, default in (
            ("kv_channels", None), ("train_seq_length", None), ("use_dynamic_ntk", True), ("use_logn_attn", True),
            ("emb_dropout_prob", 0.0), ("chat_format", "raw"), ("kernels", "auto"),
            ("use_cache_quantization", False))}
        ffn_hidden_size = values.pop("ffn_hidden_size", None)
        if values.pop("model_type", self.model_type) != self.model_type:
            raise ValueError(f"model_type: expected {self.model_type!r}, found {shown(kwargs['model_type'])}")
        super().__init__(**{key: value for key, value in values.items() if key not in NOT_KEPT})
        for key, value in extra.items():
            setattr(self, key, value)
        self.kv_channels = QWEN.head_size(self.hidden_size, self.num_heads, self.kv_channels)
        self.train_seq_length = self.train_seq_length or self.seq_length
        self.validate()
        if ffn_hidden_size not in (None, self.ffn_hidden_size):
            raise ValueError(f"ffn_hidden_size: {ffn_hidden_size} contradicts intermediate_size: "
                             f"{self.intermediate_size}, which is twice that: give intermediate_size alone")

    def validate(self):
        """
        Check what was set since, as well: values are as their keys want them afterwards.

        Raises:
            ValueError: See the class.
        """
        for key, value in list(vars(self).items()):
            if key in KINDS:
                setattr(self, key, checked(key, value))
        if self.intermediate_size % 2:
            raise ValueError(f"intermediate_size: expected an even number (twice the width of w1 and w2), "
                             f"found {self.intermediate_size}")
        if self.kv_channels % 2:
            raise ValueError(f"kv_channels: rotary embedding needs an even head size, found {self.kv_channels}")
        if self.n_kv_heads not in (None, self.num_heads):
            raise ValueError(f"n_kv_heads: Qwen has a key/value head for each of its num_heads={self.num_heads} "
                             f"heads, found {self.n_kv_heads}")
        quantization = Quantization.from_dict(self.quantization)
        if quantization and self.tie_word_embeddings and any(map(quantization.covers, (EMBEDDING, HEAD))):
            raise ValueError("quantization: an embedding that is the head as well (tie_word_embeddings) can't be "
                             "quantized")
        if self.max_position_embedding < self.seq_length:
            raise ValueError(f"seq_length: {self.seq_length} is more than the model's max_position_embeddings "
                             f"{self.max_position_embedding}")

    @property
    def ffn_hidden_size(self) -> int:
        """The width of w1 and w2."""
        return self.intermediate_size // 2

    @property
    def blocks_per_sequence(self) -> int:
        """Cache blocks of one sequence of `seq_length` tokens."""
        return -(-self.seq_length // self.block_size)

    @property
    def cache_blocks(self) -> int:
        """Blocks of the key/value cache: `num_blocks`, or what `batch_size` sequences need."""
        return self.num_blocks or self.batch_size * self.blocks_per_sequence

    def save_config_origin_mode(self, save_directory, save_name):
        """As MindFormers' (see `save_pretrained`), which leaves out types, lists and dicts: here a YAML says it all."""
        path = Path(save_directory, f"{save_name}.yaml")
        whole = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        whole["model"] = {"model_config": {"type": type(self).__name__, **self.to_dict()},
                          "arch": {"type": "QwenForCausalLM"}}
        with replacing(path) as written:
            written.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, yaml_name_or_path, **kwargs):
        """
        As MindFormers', of a YAML, or of a folder that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: No such YAML, or one that it inherits from.
            ValueError: A YAML without a model's section, or see the class; the message names the file.
        """
        path = str(kwargs.pop("pretrained_model_name_or_path", None) or yaml_name_or_path)
        if not path.endswith((".yaml", ".yml")):
            return super().from_pretrained(path, **kwargs)
        check_section(path, read_config(path), "model", "model_config")
        try:
            return super().from_pretrained(path, **kwargs)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: {' '.join(map(str, error.args))}") from None

    @classmethod
    def from_hf_config(cls, path, **overrides) -> "QwenConfig":
        """
        Read a released `config.json`, that of the first release (`n_embd`, ...) as well. Its sizes must be there: no
        others stand in for them. For the ids of tokens see `model.released.find_token_ids`.

        Args:
            path (str): The file, or the folder that holds it.
            overrides: Keys of `QwenConfig` that are to differ from the file, under either name. `seq_length` here is
                what the model can hold; without it that is the file's `max_position_embeddings`. The file's own
                `seq_length` is taken as `train_seq_length`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a Qwen config, that of an unconverted quantized model, one without a size, a token id beyond
                the vocabulary, or see `QwenConfig`.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        hf = read_released_config(path)
        if hf.get("quantization_config"):
            raise ValueError(f"{path}: quantization_config: {_quantized(hf['quantization_config'])}")
        unknown = [key for key in hf if not is_known(key)]
        if unknown:  # other programs keep theirs there: not an error
            logger.warning("%s: of no meaning here and ignored: %s", path, ", ".join(unknown))
        values = _hf_values(path, {key: hf[key] for key in hf if key not in HF_ONLY and key not in unknown})
        trained = values.pop("seq_length", None)
        dtype = _hf_dtype(path, hf)
        values.update(train_seq_length=trained, compute_dtype=dtype, param_init_type=dtype)
        values["seq_length"] = max(trained or 0, values.get("max_position_embedding") or 0) or None
        values.update(_to_mindformers_names(_checked(overrides)))
        longest = max(values.get("max_position_embedding") or 0, values["seq_length"] or 0)
        values["max_position_embedding"] = longest or None
        try:
            Quantization.from_dict(values.get("quantization"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        check_sizes(path, values)
        ids = find_token_ids(path, hf, values["vocab_size"], QWEN_DEFAULTS["eos_token_id"])
        values |= {key: value for key, value in ids.items() if overrides.get(key) is None}
        try:
            return cls(**{key: value for key, value in values.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_llama_config(cls, config: LlamaConfig) -> "QwenConfig":
        """
        The `QwenConfig` that a `LlamaConfig` from a YAML of the first MindFormers port of Qwen means.

        There `intermediate_size` is the width of one branch, or absent and then Llama's rule gives it; Qwen's own
        names stand beside Llama's defaults and win over them; the window of NTK and LogN is not known, so both are
        off unless the YAML says otherwise, and `chat_format` is None.

        It may carry anything: what is not read here is not looked at.

        Args:
            config (LlamaConfig): A plain one; a `QwenConfig` is returned as it is.

        Raises:
            ValueError: See the class.
        """
        if isinstance(config, cls):
            return config
        values, defaults = _checked_llama(vars(config)), vars(LlamaConfig())
        derived = {**defaults, "max_position_embedding": values["seq_length"]}  # where the YAML says nothing
        for qwen_name, name in QWEN_NAMES.items():
            if qwen_name in values and values[name] in (defaults[name], derived[name]):
                values[name] = values[qwen_name]
        if values["max_position_embedding"] < values["seq_length"]:
            values["max_position_embedding"] = values["seq_length"]
        if values["num_blocks"] == defaults["num_blocks"]:
            values["num_blocks"] = None
        values["intermediate_size"] = 2 * (values["intermediate_size"] or _llama_ffn_width(values))
        values["qkv_has_bias"] = True
        values.setdefault("use_dynamic_ntk", False)
        values.setdefault("use_logn_attn", False)
        chat_format = values.pop("chat_format", None)
        return cls(chat_format=chat_format, **{key: value for key, value in values.items() if value is not None})


def _checked(values):
    """The same settings, each as it is meant; ValueError for a key that there isn't or a value that it doesn't take."""
    for key in values:
        check_key(key)
    # Under Qwen's names None says nothing, as ever.
    return {key: None if value is None and key in QWEN_NAMES else checked(key, value) for key, value in values.items()}


def _checked_llama(values):
    """What a QwenConfig takes of a LlamaConfig's values; ValueError for one that means something here and can't be."""
    found = {}
    for key, value in values.items():
        if not is_known(key) or key in NOT_KEPT:
            continue
        try:
            found[key] = None if value is None else checked(key, value)
        except ValueError:
            if QWEN_NAMES.get(key, key) in MODEL:
                raise
    return found


def _quantized(value):
    """What a config.json's quantization_config means here, for the message."""
    method = str(value.get("quant_method", "gptq") if isinstance(value, dict) else value)
    if isinstance(value, dict) and method.lower() == "gptq" and not any(key.startswith("load_in_") for key in value):
        return "this is AutoGPTQ's checkpoint: convert it with convert/convert_weight.py first"
    return (f"quantized by another method than GPTQ, found {shown(value)}: give the model that it was made of, and "
            "quantize that with scripts/quantize.py")


def _hf_values(path, values):
    try:
        return _to_mindformers_names(_checked(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _to_mindformers_names(values):
    """The same settings under MindFormers' names; ValueError where both names are given and differ."""
    renamed = {key: value for key, value in values.items() if key not in QWEN_NAMES}
    for qwen_name, name in QWEN_NAMES.items():
        if values.get(qwen_name) is None:
            continue
        if renamed.get(name) not in (None, values[qwen_name]):
            raise ValueError(f"{qwen_name}: {values[qwen_name]} contradicts {name}: {renamed[name]}, "
                             "two names of one setting: give one")
        renamed[name] = values[qwen_name]
    return renamed


def _hf_dtype(path, hf):
    """The type that a config.json computes in."""
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")):
        if hf.get(key):
            return dtype
    return read_as(optional(DTYPE), f"{path}: torch_dtype", hf.get("torch_dtype")) or "float16"


def _llama_ffn_width(values):
    """Llama's rule for the width of w1: two thirds of 4 * hidden_size, rounded up to `multiple_of`."""
    width = 4 * values["hidden_size"]
    if values["ffn_dim_multiplier"]:
        width = int((values["ffn_dim_multiplier"] + 0.01) * width)
    width, multiple = int(2 * width / 3), values["multiple_of"]
    return multiple * (-(-width // multiple))
