"""
Whether a vocabulary is a model's own. With another one, or a part of its own, most ids are ids of the model as well,
and it answers without a word of what is wrong: something that nobody can read.
"""
from qwen_mindspore.text.tokenizer import MOST_ROWS_BEYOND

__all__ = ["check_vocabulary"]


def check_vocabulary(tokenizer, vocab_size, token_ids=()):
    """
    ValueError, with the path of the vocabulary, where it can't be that of a model.

    Args:
        tokenizer (QwenTokenizer): With the vocabulary. Tokenizers of other kinds are left alone.
        vocab_size (int): The model's: it has a row for each token with a meaning, and released ones up to 213 more than
            the vocabulary has tokens.
        token_ids (Sequence[int | list[int] | None]): Where they are known, the ids of a model's config that end or fill
            up a sequence. What they say counts where one of them is that of a control token: `<|endoftext|>` is among
            them then.
    """
    if not hasattr(tokenizer, "eod_id"):
        return
    path, tokens = tokenizer.vocab_file, tokenizer.vocab_size
    advice = "is this the model's? Give the whole file of the model's own, as qwen.tiktoken beside the checkpoint or " \
             "as vocab_file of the tokenizer"
    is_part = bool(token_ids) and tokens + MOST_ROWS_BEYOND < vocab_size
    if tokenizer.im_end_id >= vocab_size or is_part:
        raise ValueError(f"{path}: a vocabulary of {tokens} tokens, and the model has a vocab_size of {vocab_size}: "
                         f"{advice}")
    ids = {token for value in token_ids for token in (value if isinstance(value, (list, tuple)) else [value])}
    control = sorted(token for token in ids if token is not None and tokenizer.eod_id <= token < vocab_size)
    if control and tokenizer.eod_id not in control:
        raise ValueError(f"{path}: its <|endoftext|> is {tokenizer.eod_id}, which is not among the eos_token_id, "
                         f"pad_token_id and bos_token_id of the model ({', '.join(map(str, control))}): {advice}")
