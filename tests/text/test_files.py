"""Texts to calibrate with and to measure on."""
import pytest

from qwen_mindspore.text.files import encode_texts, read_lines, read_texts
from qwen_mindspore.text.tokenizer import QwenTokenizer


def test_a_plain_file_is_one_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Line one.\n\n第二行\n", encoding="utf-8")
    assert read_texts(path) == ["Line one.\n\n第二行\n"]


def test_jsonl_has_one_text_a_line(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one\\u2028more"}\n\n{"id": 2, "text": "two\u2028"}\n', encoding="utf-8")
    assert read_texts(path) == ["one\u2028more", "two\u2028"]


def test_texts_are_parted_by_the_end_of_text_and_control_tokens_in_them_are_text(tiny_hf):
    tokenizer = QwenTokenizer(str(tiny_hf))
    ids = encode_texts(tokenizer, ["ab", "<|endoftext|>"]).tolist()
    assert ids == [97, 98, tokenizer.eod_id, *b"<|endoftext|>"]


@pytest.mark.parametrize("name, content, message", [
    ("x.jsonl", br'{"text": "a\ud83d"}', "x.jsonl, line 1: character 2 is half a surrogate pair"),
    ("x.jsonl", b'{"text": "a"}\n{"text": 3}\n', 'x.jsonl, line 2: expected {"text": "..."}, found {"text": 3}'),
    ("x.jsonl", b'{"text": "a"}\n\n["b"]\n', "line 3: expected"),
    ("x.jsonl", b'{"text": \n', "line 1: not valid JSON"),
    ("x.txt", b"caf\xe9 au lait", "not UTF-8 \\(byte 3\\)"),
    ("x.txt", b" \n", "no text in it"),
    ("x.txt", b"\xef\xbb\xbf", "no text in it"),
    ("x.txt", "ab".encode("utf-16"), "expected UTF-8, found UTF-16"),
    ("x.jsonl", b"[" * 100_000, "line 1: not valid JSON: nested too deeply"),
    ("x.jsonl", b"\n", "no text in it"),
])
def test_what_is_no_text_is_refused_by_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("{", "\\{")):
        read_texts(path)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "x.txt").write_text("a\n", encoding="utf-8-sig")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\r\n', encoding="utf-8-sig")
    assert read_texts(tmp_path / "x.txt") == ["a\n"] and read_texts(tmp_path / "x.jsonl") == ["a"]


def test_each_line_is_read_and_empty_ones_at_the_end_are_none(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\u2028more\r\n two \x0c\n三\u0085\n\n \t\r\n".encode())
    assert read_lines(path) == ["one\u2028more", " two \x0c", "三\u0085"]


@pytest.mark.parametrize("content, said", [
    (b"a\n\nb\n", "x.txt, line 2 is empty: remove it"), (b"\n\na", "x.txt, line 1 is empty"),
    (b"", "x.txt: no text in it"), (b"\n \n", "x.txt: no text in it"), (b"a\n\xe9", "x.txt: not UTF-8 \\(byte 2\\)"),
])
def test_a_line_that_says_nothing_is_named(content, said, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_lines(tmp_path / "x.txt")
