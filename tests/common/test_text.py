"""How messages show values and names: on one line, whatever they are."""
import pytest

from qwen_mindspore.common.text import check_whole, closest, is_blank, listed, nearest, readable_bytes, shown


@pytest.mark.parametrize("count, text", [(0, "0 bytes"), (775, "775 bytes"), (2000, "2.0 kB"), (12_500_000, "12.5 MB"),
                                         (3_673_690_000, "3.7 GB"), (144_600_000_000, "144.6 GB")])
def test_bytes_are_told_in_what_a_person_counts_them(count, text):
    assert readable_bytes(count) == text


def test_a_long_value_is_cut_off():
    assert shown("a" * 100, limit=10) == "'aaaaaa..."


def test_values_are_cut_off_where_they_are_long():
    assert shown("a\nb") == "'a\\nb'" and len(shown("x" * 1000)) == 60


def test_names_stand_with_commas_and_what_is_not_printable_in_quotes():
    assert listed(["prompt", "id", "你好"]) == "prompt, id, 你好"
    assert listed(["a\n", 5, None]) == "'a\\n', 5, None" and listed([]) == ""
    assert len(listed(map(str, range(1000)))) == 200


def test_the_near_name_is_told_if_there_is_one_and_never_the_name_itself():
    names = ["top_k", "top_p", "temperature"]
    assert closest("temprature", names) == "temperature" and closest("x", names) is None is closest("top_k", names)
    assert nearest("temprature", names) == " (did you mean temperature?)" and nearest("x", names) == ""
    assert closest(7, iter(["70", "a"])) == "70", "whatever was taken for a name"


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u2028\u2029", "\u3000", "\xa0\u1680\u205f", "\x1c\x1f\x85"])
def test_white_space_of_whatever_kind_says_nothing(text):
    assert is_blank(text) and not is_blank(f"{text}.{text}")


def test_what_is_not_seen_may_be_something_nevertheless():
    assert not is_blank("\u200b") and not is_blank("\0") and not is_blank("\u2800")


@pytest.mark.parametrize("text, character, half", [("a\ud83d", 2, "d83d"), ("\ude00\ud83d", 1, "de00"),
                                                   ("\ud83d\ud83d\ude00", 1, "d83d"), ("😀\udfff😀", 2, "dfff")])
def test_half_a_surrogate_pair_is_no_text(text, character, half):
    with pytest.raises(ValueError, match=rf"^it: character {character} is half a surrogate pair \(\\u{half}\) and "):
        check_whole(text, "it")


def test_whole_characters_are_text_be_they_in_two_halves():
    check_whole("a 😀 \ud83d\ude00\ud83d\ude00 \ue000\uffff", "it")
