"""The processor around the tokenizer, as users of MindFormers import it."""
from qwen_mindspore.text.processor import QwenProcessor

__all__ = ["QwenProcessor"]
