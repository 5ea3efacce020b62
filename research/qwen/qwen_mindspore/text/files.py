"""Texts from files: what quantize.py calibrates with and perplexity.py measures on, and prompts, one a line."""
from pathlib import Path

import numpy as np

from qwen_mindspore.common.files import parse_json, read_json, read_text, split_lines
from qwen_mindspore.common.keys import TOKENIZER
from qwen_mindspore.common.kinds import COUNT, optional, read_keys
from qwen_mindspore.common.text import check_whole, is_blank

__all__ = ["encode_texts", "read_lines", "read_texts", "read_tokenizer_config"]

UNLIMITED = 10**9  # tokens: more than any model holds


def read_lines(path):
    """
    The lines of a UTF-8 file, each of which says something; empty ones at the end are none.

    Returns:
        list[str]

    Raises:
        ValueError: An empty line among others, or there is nothing else in the file; it is not UTF-8. The message names
            file and line.
        OSError: The file can't be read.
    """
    lines = split_lines(read_text(path))
    while lines and is_blank(lines[-1]):
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: no text in it")
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            raise ValueError(f"{path}, line {number} is empty: remove it")
    return lines


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
    content = read_text(path)
    texts = [content]
    if Path(path).suffix == ".jsonl":
        texts = [_text_of(f"{path}, line {number}", line)
                 for number, line in enumerate(content.split("\n"), start=1) if not is_blank(line)]
    if all(map(is_blank, texts)):
        raise ValueError(f"{path}: no text in it")
    return texts


def _text_of(place, line):
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'{place}: expected {{"text": "..."}}, found {line[:60]}')
    check_whole(text, place)
    return text


def read_tokenizer_config(path):
    """
    What a tokenizer_config.json says of a Qwen's tokenizer; what other tokenizers have there is left out, and a length
    without a limit, which is written as 1e30.

    Returns:
        dict, arguments of `QwenTokenizer`.

    Raises:
        ValueError: Not JSON, or a value that can't be; the message names file and key.
    """
    values = {key: value["content"] if isinstance(value, dict) and "content" in value else value
              for key, value in read_json(path).items() if key in TOKENIZER or key == "model_max_length"}
    if isinstance(values.get("model_max_length"), (int, float)) and values["model_max_length"] >= UNLIMITED:
        del values["model_max_length"]
    values = read_keys({**TOKENIZER, "model_max_length": optional(COUNT)}, values, f"{path}: ")
    return {key: value for key, value in values.items() if value is not None}


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
