"""A YAML for a model that was named and not described: from its config.json and generation_config.json."""
from pathlib import Path

from qwen_mindspore.checkpoint.by_name import find_checkpoint
from qwen_mindspore.checkpoint.files import checkpoint_files
from qwen_mindspore.common.configs import read_config
from qwen_mindspore.common.deferred_imports import import_mindformers
from qwen_mindspore.common.files import configs_folder, read_json, replacing

__all__ = ["find_model", "write_config"]

BASE = "base/predict_qwen.yaml"
LARGE = 20e9  # bytes of weights that leave no room in the memory of the smaller NPUs

# What config.json decides; under Qwen's names, as in the YAMLs of configs/.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "kv_channels", "intermediate_size", "vocab_size",
         "layer_norm_epsilon", "rotary_emb_base", "use_dynamic_ntk", "use_logn_attn", "train_seq_length",
         "max_position_embeddings", "seq_length", "tie_word_embeddings", "quantization")
DTYPES = ("compute_dtype", "param_init_type")
# What generation_config.json decides.
GENERATION = ("chat_format", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def find_model(model, revision=None, hub=None):
    """
    The YAML and the checkpoint of a model: as if the user had written the one and converted the other.

    Args:
        model, revision, hub: See `checkpoint.by_name.find_checkpoint`.

    Returns:
        (Path of the YAML, Path of the checkpoint).

    Raises:
        ValueError, OSError: See there; or config.json or generation_config.json is not what it should be.
    """
    found = find_checkpoint(model, revision, hub)
    return write_config(found.checkpoint, found.entry.folder / "config.yaml"), found.checkpoint


def write_config(checkpoint, path):
    """
    Write the YAML of a checkpoint, unless it is there: what configs/base says, the sizes of the config.json beside the
    checkpoint and the settings of its generation_config.json.

    There is room for as many tokens as the model was trained with, as in the YAMLs of the released models.

    Args:
        checkpoint (Path): A folder or a file.
        path (Path): The YAML.

    Returns:
        Path, `path`.

    Raises:
        ValueError, OSError: A file beside the checkpoint is not what it should be, or missing.
    """
    import yaml

    content = read_config(configs_folder() / BASE)
    content["model"]["model_config"] |= _model_config(checkpoint)
    content["trainer"]["model_name"] = checkpoint.stem.lower() if checkpoint.is_file() else checkpoint.name.lower()
    content["processor"]["tokenizer"]["model_max_length"] = content["model"]["model_config"]["seq_length"]
    content["context"] |= {"device_target": "auto", "max_device_memory": _device_memory(checkpoint)}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        with replacing(path) as written:
            written.write_text(text, encoding="utf-8")
    return path


def _device_memory(checkpoint):
    """What an NPU may give: as the YAMLs of the released models have it, by the size of the weights."""
    size = sum(file.stat().st_size for file in checkpoint_files(checkpoint))
    return "28GB" if size < LARGE else "58GB"


def _model_config(checkpoint):
    """The `model_config` of a checkpoint, as far as it differs from the base's."""
    import_mindformers()
    from qwen_mindspore.generate.settings import GenerationSettings
    from qwen_mindspore.generate.vocabulary import check_vocabulary
    from qwen_mindspore.model.config import QwenConfig
    from qwen_mindspore.model.released import TOKEN_IDS
    from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    tokenizer = QwenTokenizer(find_vocab_file(beside=checkpoint))
    config, end = QwenConfig.from_hf_config(folder), tokenizer.eod_id
    if Path(tokenizer.vocab_file).parent == folder:
        # Here, as of the ids the YAML says what the vocabulary does.
        generation = folder / "generation_config.json"
        named = read_json(generation) if generation.is_file() else {}
        check_vocabulary(tokenizer, config.vocab_size,
                         [getattr(config, key) for key in TOKEN_IDS if named.get(key) is not None])
    values = {key: getattr(config, key) for key in SIZES}
    values["seq_length"] = min(config.train_seq_length, config.seq_length)
    values |= {key: str(getattr(config, key)).lower() for key in DTYPES}
    settings = GenerationSettings.load(config, checkpoint)
    values |= {key: getattr(settings, key) for key in GENERATION}
    ends = [tokenizer.im_end_id, tokenizer.im_start_id] if settings.chat_format == "chatml" else []
    ends += [words[0] for words in settings.stop_words_ids if len(words) == 1]
    values |= {"eos_token_id": list(dict.fromkeys([*ends, end])), "pad_token_id": end, "bos_token_id": end,
               "max_decode_length": settings.max_new_tokens}
    return {key: value for key, value in values.items() if value is not None}
