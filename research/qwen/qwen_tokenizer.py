"""The tokenizer, as users of MindFormers import it; importing it registers Qwen with MindFormers."""
import qwen_mindspore.generate.loop  # noqa: F401  all that a YAML may name
from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file, load_vocab

__all__ = ["QwenTokenizer", "find_vocab_file", "load_vocab"]
