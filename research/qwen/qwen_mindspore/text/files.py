"""The texts that quantize.py calibrates with and perplexity.py measures on."""
import json
from pathlib import Path

import numpy as np

__all__ = ["encode_texts", "read_texts"]


def read_texts(path):
    """
    The texts of a UTF-8 file.

    Args:
        path (str): NAME.jsonl has one a line, the `text` of a JSON object; any other file is one text.

    Returns:
        list[str]

    Raises:
        ValueError: A line is no JSON object with a `text`, the file is not UTF-8, or there is no text in it.
        OSError: The file can't be read.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}): convert it") from None
    texts = [content]
    if Path(path).suffix == ".jsonl":
        texts = [_text_of(f"{path}, line {number}", line)
                 for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if not any(text.strip() for text in texts):
        raise ValueError(f"{path}: no text in it")
    return texts


def _text_of(place, line):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'{place}: expected {{"text": "..."}}, found {line[:60]}')
    return text


def encode_texts(tokenizer, texts):
    """
    Texts one behind the other, with <|endoftext|> between them; control tokens in a text are text.

    Args:
        tokenizer (QwenTokenizer): The model's.
        texts (list[str]): See `read_texts`.

    Returns:
        np.ndarray, [tokens] int32.
    """
    ids = []
    for text in texts:
        ids += [tokenizer.eod_id] if ids else []
        ids += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, allowed_special=set()))
    return np.array(ids, np.int32)
