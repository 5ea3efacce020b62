"""
What a terminal shows: lines broken between words, whatever pieces they come in, and nothing that moves the cursor.
"""
import io
import random
import textwrap

import pyte
import pytest

from qwen_mindspore.chat.terminal import Wrapped, _history


def shown(pieces, columns=20, begun=""):
    """The lines of a terminal that such pieces were written to, behind what a line has begun with."""
    file = io.StringIO()
    file.write(begun)
    text = Wrapped(file, columns, len(begun))
    for piece in pieces:
        text.write(piece)
    screen = pyte.Screen(columns, 400)
    pyte.Stream(screen).feed(file.getvalue().replace("\n", "\r\n"))
    return [line.rstrip() for line in "\n".join(screen.display).rstrip().split("\n")]


def test_a_word_that_does_not_fit_moves_to_the_next_line():
    assert shown(["The quick br", "own fox", " jumps"], 14) == ["The quick", "brown fox", "jumps"]


def test_the_first_line_begins_behind_a_label():
    assert shown(["The quick brown"], 16, "Qwen: ") == ["Qwen: The quick", "brown"]


def test_a_word_longer_than_a_line_is_broken():
    assert shown(["a " + "x" * 25], 11) == ["a", "x" * 10, "x" * 10, "x" * 5]


def test_line_ends_and_indentation_are_those_of_the_text():
    assert shown(["def f():\n", "    return 1\n\nEnd."]) == ["def f():", "    return 1", "", "End."]
    assert shown(["if x:\n\treturn"]) == ["if x:", "    return"]


def test_chinese_is_broken_anywhere_and_never_within_a_character():
    # pyte shows the second half of a wide character as nothing.
    assert shown(["你好世界" * 4], 11) == ["你好世界你", "好世界你好", "世界你好世", "界"]


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_do_not_matter(seed):
    chance = random.Random(seed)
    text = " ".join("x" * chance.randint(1, 15) for _ in range(60))
    cuts = sorted(chance.choices(range(len(text)), k=40))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
    assert shown(pieces) == textwrap.wrap(text, 19)


def test_control_characters_are_shown_as_unknown():
    file = io.StringIO()
    Wrapped(file, 80).write("a\x1b[2Jb\x07\x9bc\r")
    assert file.getvalue() == "a\ufffd[2Jb\ufffd\ufffdc\ufffd"


def test_a_history_that_can_not_be_kept_is_no_reason_not_to_chat(tmp_path, capsys):
    (tmp_path / "file").touch()
    history = _history(tmp_path / "file/chat_history")
    assert "what you type is not kept" in capsys.readouterr().err
    history.append_string("line")
    assert history.get_strings() == ["line"]


def test_what_is_typed_is_readable_to_its_owner_alone(tmp_path):
    _history(tmp_path / "a/b/chat_history").append_string("line")
    assert (tmp_path / "a/b/chat_history").stat().st_mode & 0o777 == 0o600
