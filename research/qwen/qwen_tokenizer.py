"""The tokenizer, as users of MindFormers import it."""
from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file, load_vocab

__all__ = ["QwenTokenizer", "find_vocab_file", "load_vocab"]
