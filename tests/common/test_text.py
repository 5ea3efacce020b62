"""How messages show values and names: on one line, whatever they are."""
from qwen_mindspore.common.text import listed, shown


def test_values_are_cut_off_where_they_are_long():
    assert shown("a\nb") == "'a\\nb'" and len(shown("x" * 1000)) == 60


def test_names_stand_with_commas_and_what_is_not_printable_in_quotes():
    assert listed(["prompt", "id", "你好"]) == "prompt, id, 你好"
    assert listed(["a\n", 5, None]) == "'a\\n', 5, None" and listed([]) == ""
    assert len(listed(map(str, range(1000)))) == 200
