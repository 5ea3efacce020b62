"""What tests of the server share."""
import pytest


@pytest.fixture(scope="session")
def tokenizer(tiny_hf):
    """The vocabulary of the 256 bytes and the control tokens."""
    from qwen_mindspore.text.tokenizer import QwenTokenizer
    return QwenTokenizer(str(tiny_hf))
