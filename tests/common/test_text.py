"""How messages show values and names: on one line, whatever they are."""
import pytest

from qwen_mindspore.common.text import listed, readable_bytes, shown


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
