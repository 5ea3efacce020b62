"""Chat, as users of MindFormers import it; importing it registers Qwen with MindFormers."""
import qwen_mindspore.generate.loop  # noqa: F401  all that a YAML may name
from qwen_mindspore.chat.chat import Reply, chat, chat_batch, chat_settings, chat_stream, stream_reply
from qwen_mindspore.text.chatml import ChatMLTokenizer, decode_tokens, get_stop_words_ids, make_context

__all__ = ["ChatMLTokenizer", "Reply", "chat", "chat_batch", "chat_settings", "chat_stream", "decode_tokens",
           "get_stop_words_ids", "make_context", "stream_reply"]
