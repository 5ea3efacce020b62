"""JSON that keeps the text of numbers, and is JSON whatever it is made of."""
import copy
import json
import math
from decimal import Decimal

import pytest

from qwen_mindspore.common.files import to_json
from qwen_mindspore.common.json_text import DEEPEST, Number, dump_json, exact, parse_exact_json, without_infinities

INF, NAN = math.inf, math.nan


def refuse(constant):
    raise ValueError(constant)


def strictly(line):
    """JSON by its definition, without Python's constants."""
    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1.10", "0.1000000000000000055", "1e5", "1E-7", "-0.0", "-0",
                                  "0.5", "7", "123456789012345678901234567890.5", "12345678901234567890", "9" * 5000])
def test_a_number_is_written_as_it_was_read(text):
    for line in (f'{{"id": {text}}}', f'[{text}, {{"a": [{text}]}}]'):
        assert dump_json(parse_exact_json(line)) == line.encode()
        assert dump_json(copy.deepcopy(parse_exact_json(line))) == line.encode()


def test_a_number_is_a_float_for_all_else():
    number = parse_exact_json("1.10")
    assert number == 1.1 and isinstance(number, float) and repr(number) == "1.10"
    assert type(parse_exact_json("0.5")) is float and type(parse_exact_json("7")) is int
    assert parse_exact_json("1e400") == INF


def test_text_that_looks_like_a_mark_stays_text():
    for text in ("\u0001number 0 1.5", '"1.5"', "\\u0001number"):
        assert strictly(dump_json({"a": text, text: Number("1.50")})) == {"a": text, text: 1.5}


@pytest.mark.parametrize("text", ["NaN", "Infinity", '{"a": -Infinity}', "[" * 100_000, "{", "",
                                  '{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "[" * (DEEPEST + 1) +
                                  "]" * (DEEPEST + 1), '{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1)])
def test_what_is_no_json_or_too_deep_is_refused(text):
    with pytest.raises(ValueError):
        parse_exact_json(text)


def test_what_is_read_can_be_written():
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert dump_json(parse_exact_json(deepest)) == deepest.encode()
    assert dump_json([1, parse_exact_json(deepest)]).endswith(b"]" * (DEEPEST + 1))


@pytest.mark.parametrize("value, written", [
    (INF, None), (NAN, None), (-INF, None), ([NAN, {"a": (INF, 1)}], [None, {"a": [None, 1]}]), (Decimal("NaN"), None),
    (Decimal("1.10"), 1.1), (Decimal("Infinity"), None), ({NAN: 1, 3: 2}, {"nan": 1, "3": 2})])
def test_what_json_has_not_is_null(value, written):
    assert strictly(dump_json(value)) == written


def test_in_a_file_too(tmp_path):
    assert strictly(to_json({"a": [INF, (NAN, 0.5)]})) == {"a": [None, [None, 0.5]]}
    assert without_infinities({"a": (1, NAN)}) == {"a": [1, None]}
    assert strictly(to_json({"a": "\ud800 \u2028 é"})) == {"a": "\ud800 \u2028 é"}


def test_lines_hold_no_end_of_a_line_and_half_a_surrogate_pair_is_escaped():
    line = dump_json({"a": "\n\r\t\u2028\u2029\x85 é", "b": Number("1.50")})
    assert len(line.decode().splitlines()) == 1 and strictly(line) == {"a": "\n\r\t\u2028\u2029\x85 é", "b": 1.5}
    assert strictly(dump_json(["\ud800", Number("1.50")])) == ["\ud800", 1.5]


def test_decimals_become_floats_or_numbers():
    found = exact({"a": [Decimal("0.5"), Decimal("1.10")], "b": Decimal("NaN"), "c": 7})
    assert found == {"a": [0.5, 1.1], "b": None, "c": 7} and type(found["a"][0]) is float
    assert dump_json(found) == b'{"a": [0.5, 1.10], "b": null, "c": 7}'
