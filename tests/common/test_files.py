"""Files written whole or not at all, and messages about those that can't be read."""
import os

import numpy as np
import pytest

from qwen_mindspore.common.files import (
    cache_folder,
    check_disk,
    check_encoding,
    configs_folder,
    decode_text,
    read_json,
    read_text,
    replacing,
    sha256,
    split_lines,
    state_folder,
    to_json,
)
from qwen_mindspore.common.text import argument_text, one_line, shown


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "deep/file.txt"
    with replacing(path) as written:
        written.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as written:
        written.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_whole_too(tmp_path):
    with replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "a").write_text("a")
    assert (tmp_path / "folder/a").read_text() == "a"


def test_json_there_and_back(tmp_path):
    (tmp_path / "x.json").write_bytes(to_json({"名": [1, None]}))
    assert read_json(tmp_path / "x.json") == {"名": [1, None]}


@pytest.mark.parametrize("content, said", [
    (b"{", "x.json: not valid JSON"), (b"[1]", "x.json: expected a JSON object, found list"),
    (b"\xff\xfe", "x.json: not valid JSON"), ("{}".encode("utf-16"), "not valid JSON \\(expected UTF-8, found UTF-16"),
    (b'{"a": "\xe9"}', "not valid JSON \\(not UTF-8 \\(byte 7\\)"), (b"[" * 100_000, "not valid JSON \\(nested too d"),
    (b"", "not valid JSON"), (b'{"a": 1}\0', "not valid JSON \\(not a text \\(byte 8 is 0\\)")])
def test_json_that_can_not_be_read(tmp_path, content, said):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="y.json is missing: the model's y.json is needed"):
        read_json(tmp_path / "y.json")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\ufeffb"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"a": "\ufeffb"}, "elsewhere it is what was written"
    assert read_text(tmp_path / "x.json") == '{"a": "\ufeffb"}'
    assert decode_text(b"\xef\xbb\xbf") == decode_text(b"") == ""


@pytest.mark.parametrize("encoding, said", [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_another_encoding_is_named(encoding, said):
    raw = "text".encode(encoding)
    with pytest.raises(ValueError, match=f"^f.txt: expected UTF-8, found {said}: save it as UTF-8$"):
        decode_text(raw, "f.txt")
    with pytest.raises(ValueError, match=f"^expected UTF-8, found {said}"):
        check_encoding(raw)
    check_encoding(b"text")


@pytest.mark.parametrize("raw, said", [(b"caf\xe9", "f: not UTF-8 \\(byte 3\\): convert it"),
                                       ("ab".encode("utf-16-le"), "f: not a text \\(byte 1 is 0\\): expected UTF-8"),
                                       (b"\xed\xa0\x80", "f: not UTF-8 \\(byte 0\\)")])
def test_what_is_no_text_is_refused_by_its_byte(raw, said):
    with pytest.raises(ValueError, match=said):
        decode_text(raw, "f")


def test_lines_end_where_a_line_ends_and_nowhere_else():
    text = "a\u2028b\u2029c\nd\u0085e\x0bf\r\ng\x0ch\x1ci\x1dj\x1ek\r\rl"
    assert split_lines(text) == ["a\u2028b\u2029c", "d\u0085e\x0bf", "g\x0ch\x1ci\x1dj\x1ek", "", "l"]
    assert split_lines("a\n") == split_lines("a") == ["a"]
    assert split_lines("") == [] and split_lines("\n") == [""]


def test_an_argument_is_the_text_that_was_typed():
    assert argument_text("né") == "né" and argument_text(os.fsdecode("中".encode())) == "中"
    with pytest.raises(ValueError, match="^not UTF-8 \\(byte 3\\): the terminal or the script has another encoding$"):
        argument_text(os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match="not UTF-8"):
        argument_text("\ud800")


def test_the_folders_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("models") == tmp_path / "cache/qwen-mindspore/models"
    assert state_folder() == tmp_path / "home/.local/state/qwen-mindspore"


def test_the_shipped_configs_are_found():
    assert (configs_folder() / "predict_qwen_7b.yaml").is_file()


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_disk_too_small_is_an_error_that_says_how_much_is_needed(tmp_path):
    check_disk(tmp_path / "not/there/yet", 1)
    with pytest.raises(OSError, match="the disk is full, .* GB needed, .* GB free") as caught:
        check_disk(tmp_path / "not/there/yet", 2 ** 60)
    assert caught.value.filename == os.fspath(tmp_path / "not/there/yet")


def test_in_the_cache_a_disk_too_small_says_how_the_cache_is_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match=f"qwen-ms cache .* move {tmp_path}/qwen-mindspore to .* set XDG_CACHE_HOME"):
        check_disk(tmp_path / "qwen-mindspore/models/new", 2 ** 60)
    with pytest.raises(OSError, match="free: make room or choose another place") as caught:
        check_disk(tmp_path / "elsewhere", 2 ** 60)
    assert "XDG_CACHE_HOME" not in str(caught.value)


def test_long_values_are_cut_off():
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown([1, 2]) == "[1, 2]"
    assert shown("a  b\n") == "'a  b\\n'" and "\n" not in shown(np.zeros((2, 2)))
    assert shown(10**9999) == "an unreadable int"


def test_a_pointer_of_git_lfs_is_no_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 20\n")
    with pytest.raises(ValueError, match=r"config.json: a git-lfs pointer, not the file itself: run `git lfs pull` in"):
        read_json(path)


@pytest.mark.parametrize("text, message", [
    ('{"bits": 4, "bits": 8}', "'bits' is there twice, as 4 and as 8"),
    ('{"a": {"x": "one", "x": "two"}}', "'x' is there twice, as 'one' and as 'two'"),
    ("[" * 100_000, "nested too deeply"), ('{"a": ' * 100_000, "nested too deeply"),
    ('{"a": 1' + "0" * 5000 + "}", "Exceeds the limit")])
def test_json_that_contradicts_itself_or_has_no_end_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json: not valid JSON .*{message}"):
        read_json(tmp_path / "x.json")


def test_json_may_say_the_same_thing_twice(tmp_path):
    (tmp_path / "x.json").write_text('{"bits": 4, "bits": 4}')
    assert read_json(tmp_path / "x.json") == {"bits": 4}


@pytest.mark.parametrize("value", [
    [], {}, (), (1,), [1, "a", None], {"a": [1.5, (2, 3)], 2: {"b": True}}, "it's", b"x", {1, 2}, 7, [[]], ({},)])
def test_a_value_is_shown_as_python_does(value):
    assert shown(value) == repr(value)


def test_no_more_of_a_value_is_made_than_is_shown():
    value = [0]
    for _ in range(100):
        value = [value] * 10
    itself = {}
    itself["it"] = itself
    assert shown(value) == "[" * 57 + "..."
    assert shown(itself) == ("{'it': " * 10)[:57] + "..."


def test_what_a_parser_says_is_one_line_that_prints():
    assert one_line("bad\n  \x1b[31mred\x01 é\u2028x '\t'") == "bad \\x1b[31mred\\x01 é x '\\t'"
