"""What a released folder says beside its config.json, and what that must say: for `QwenConfig.from_hf_config`."""
from qwen_mindspore.common.files import read_json
from qwen_mindspore.model.config_keys import checked

__all__ = ["TOKEN_IDS", "check_sizes", "find_token_ids"]

# As a QwenConfig calls them; as a config.json does.
SIZES = {"hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
         "intermediate_size": "intermediate_size", "vocab_size": "vocab_size", "seq_length": "seq_length"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NO_TOKEN = -1


def check_sizes(path, values):
    """
    ValueError where a size is neither in a config.json nor given: Qwen-7B's would stand in for it.

    Args:
        path (Path): The file.
        values (dict): What is known, under a QwenConfig's names.
    """
    missing = [theirs for ours, theirs in SIZES.items() if values.get(ours) is None]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing, of a model's sizes ({', '.join(SIZES.values())}): "
                         "fetch the whole file, or give what is missing")


def find_token_ids(path, config, vocab_size, default):
    """
    The ids of what begins, ends and fills up a sequence: those of generation_config.json beside a config.json, as in
    transformers, else the config's own, else that of <|endoftext|>, which follows the tokens of the vocabulary beside
    it; without one Qwen's, where the model's vocabulary has it; else none.

    Args:
        path (Path): The config.json.
        config (dict): Its content.
        vocab_size (int): The model's.
        default (int): Qwen's id of <|endoftext|>.

    Returns:
        dict of TOKEN_IDS.

    Raises:
        ValueError: An id is none, or is beyond the vocabulary; it is named. A vocabulary that can't be read gives no
            id: whoever tokenizes is told what is wrong with it.
    """
    generation, vocabulary = path.with_name("generation_config.json"), path.with_name("qwen.tiktoken")
    sources = [(file, content) for file, content in (
        (generation, read_json(generation) if generation.is_file() else {}), (path, config))]
    found = {}
    for key in TOKEN_IDS:
        for file, content in sources:
            if content.get(key) is not None:
                found[key] = _within(path, file, key, content[key], vocab_size)
                break
    if len(found) < len(TOKEN_IDS):
        end = _end_of_text(vocabulary, vocab_size)
        if end is None:
            end = default if default < vocab_size else NO_TOKEN
        found = {**dict.fromkeys(TOKEN_IDS, end), **found}
    return found


def _within(path, file, key, value, vocab_size):
    """An id or a list of them, checked."""
    try:
        value = checked(key, value)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for token in value if isinstance(value, list) else [value]:
        if token >= vocab_size:
            raise ValueError(f"{file}: {key}: {token} is beyond the vocabulary, of a vocab_size of {vocab_size} by "
                             f"{path.name}: do the two belong together?")
    return value


def _end_of_text(vocabulary, vocab_size):
    """The id of <|endoftext|>; None without a vocabulary."""
    from qwen_mindspore.text.tokenizer import load_vocab

    if not vocabulary.is_file():
        return None
    try:
        end = len(load_vocab(vocabulary))
    except ValueError:
        return None
    if end >= vocab_size:
        raise ValueError(f"{vocabulary}: its {end} tokens and <|endoftext|> are more than vocab_size, {vocab_size}, of "
                         "config.json: do the two files belong together?")
    return end
