"""The `processor:` section of a YAML builds a QwenProcessor around the tokenizer it names."""
import base64

import mindspore as ms
import pytest
from mindformers.models.build_processor import build_processor
from mindformers.tools.register import MindFormerConfig

from qwen_mindspore.text.chatml import ChatMLTokenizer
from qwen_mindspore.text.processor import QwenProcessor
from qwen_mindspore.text.tokenizer import QwenTokenizer


@pytest.fixture(scope="session")
def byte_vocab(tmp_path_factory):
    """A vocabulary of the 256 bytes."""
    path = tmp_path_factory.mktemp("bytes") / "qwen.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)))
    return path


@pytest.mark.parametrize("tokenizer_class", [QwenTokenizer, ChatMLTokenizer])
def test_the_section_of_an_old_yaml_builds(byte_vocab, tokenizer_class):
    config = MindFormerConfig(processor={
        "type": "QwenProcessor", "return_tensors": "ms",
        "tokenizer": {"type": tokenizer_class.__name__, "vocab_file": str(byte_vocab), "unk_token": "<unk>",
                      "bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}})
    processor = build_processor(config.processor)
    assert type(processor) is QwenProcessor
    assert type(processor.tokenizer) is tokenizer_class


def test_a_call_pads_texts_into_one_tensor(byte_vocab):
    processor = QwenProcessor(QwenTokenizer(byte_vocab), max_length=4)
    ids = processor(["hi", "you"])["text"]
    assert isinstance(ids, ms.Tensor)
    assert ids.asnumpy().tolist() == [[*b"hi", 256, 256], [*b"you", 256]]


def test_a_single_text_is_a_batch_of_one(byte_vocab):
    processor = QwenProcessor(QwenTokenizer(byte_vocab), padding=False, return_tensors="np")
    assert processor("hi")["text"].tolist() == [[*b"hi"]]


def test_it_wants_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        QwenProcessor(tokenizer="qwen.tiktoken")
