"""The tokenizer's processor, as users of MindFormers import it; importing it registers Qwen with MindFormers."""
import qwen_mindspore.generate.loop  # noqa: F401  all that a YAML may name
from qwen_mindspore.text.processor import QwenProcessor

__all__ = ["QwenProcessor"]
