"""The model's configuration, as users of MindFormers import it."""
from qwen_mindspore.model.config import QwenConfig

__all__ = ["QwenConfig"]
