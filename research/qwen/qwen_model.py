"""The model, as users of MindFormers import it; importing it registers Qwen with MindFormers."""
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.model.graph import QwenModel

__all__ = ["QwenForCausalLM", "QwenModel"]
