"""How messages show values."""
import pytest

from qwen_mindspore.common.text import readable_bytes, shown


@pytest.mark.parametrize("count, text", [(0, "0 bytes"), (775, "775 bytes"), (2000, "2.0 kB"), (12_500_000, "12.5 MB"),
                                         (3_673_690_000, "3.7 GB"), (144_600_000_000, "144.6 GB")])
def test_bytes_are_told_in_what_a_person_counts_them(count, text):
    assert readable_bytes(count) == text


def test_a_long_value_is_cut_off():
    assert shown("a" * 100, limit=10) == "'aaaaaa..."
