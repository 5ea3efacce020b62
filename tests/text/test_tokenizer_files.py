"""The files of a tokenizer as people have them: a tokenizer_config.json, a vocabulary from an editor of Windows."""
import pytest

from qwen_mindspore.text.tokenizer import QwenTokenizer, load_vocab


@pytest.fixture
def vocabulary(tiny_hf):
    return tiny_hf / "qwen.tiktoken"


@pytest.mark.parametrize("content, length, side, pad", [
    ('\ufeff{"model_max_length": 8192}', 8192, "right", "<|endoftext|>"),
    ('{"model_max_length": "8192", "padding_side": "Left"}', 8192, "left", "<|endoftext|>"),
    ('{"model_max_length": 1e30, "pad_token": {"content": "<|extra_0|>"}}', int(1e30), "right", "<|extra_0|>"),
    ('{"pad_token": null, "add_bos_token": "False", "vocab_file": "/nowhere"}', int(1e30), "right",
     "<|endoftext|>"),
])
def test_what_a_tokenizer_config_says_is_taken_as_it_is_meant(tmp_path, vocabulary, content, length, side,
                                                              pad):
    (tmp_path / "qwen.tiktoken").write_bytes(vocabulary.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
    tokenizer = QwenTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.pad_token) == (length, side, pad)
    assert tokenizer.vocab_file == str(tmp_path / "qwen.tiktoken")
    assert QwenTokenizer.from_pretrained(tmp_path, padding_side="left").padding_side == "left"


@pytest.mark.parametrize("content, said", [
    ("", "not valid JSON"), ("[]", "expected a JSON object, found list"), ("null", "expected a JSON object"),
    ('{"pad_token": true}', "pad_token: expected a text or None, found True"),
    ('{"errors": "x"}', "errors: expected replace, ignore, strict or None, found 'x'"),
    ('{"model_max_length": 0}', "model_max_length: expected a positive integer or None, found 0"),
])
def test_a_tokenizer_config_that_can_not_be_is_named(tmp_path, vocabulary, content, said):
    (tmp_path / "qwen.tiktoken").write_bytes(vocabulary.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {said}"):
        QwenTokenizer.from_pretrained(tmp_path)


def test_a_byte_order_mark_is_none_of_it(tmp_path, vocabulary):
    path = tmp_path / "v"
    path.write_bytes(b"\xef\xbb\xbf" + vocabulary.read_bytes().replace(b"\n", b"\r\n"))
    assert load_vocab(path) == load_vocab(vocabulary)
