"""Whatever a row holds: an answer, or that row's error in one line; see helpers/properties.py."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch import FakeEngine
from helpers.properties import python_values, texts, tried, values
from qwen_mindspore.batch import json_items
from qwen_mindspore.batch.journal import ANSWER
from qwen_mindspore.batch.records import FORMATS, Record, read_records
from qwen_mindspore.batch.worker import OVERRIDES, REFUSED, RowOptions, Worker, answer_all
from qwen_mindspore.common.json_text import dump_json
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.tokenizer import QwenTokenizer

COLUMNS = ("prompt", "messages", "query", "history", "system", "id", *OVERRIDES, *REFUSED)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | values(),
                              "content": texts() | values()})
ROWS = st.fixed_dictionaries({}, optional={
    "prompt": texts() | python_values(), "messages": st.lists(TURN, max_size=4) | python_values(),
    **dict.fromkeys(sorted({*COLUMNS} - {"prompt", "messages"}), python_values())})
FEW = st.dictionaries(st.sampled_from(sorted(COLUMNS)), python_values(), max_size=3)
ROW = st.builds(lambda row, few: {**row, **few}, st.just({"prompt": "Hello"}) | st.just({}), FEW) | ROWS
CONSTANTS = ("NaN", "Infinity", "-Infinity")


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, pad_token_id=256, batch_size=4, seq_length=64)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def check(results, count):
    """Each row has one result, which is a line of JSON; an error is one line."""
    assert sorted(result.number for result in results) == list(range(1, count + 1))
    for result in results:
        line = dump_json(result.content)
        assert b"\n" not in line
        content = json.loads(line, parse_constant=refuse)
        if result.kind == ANSWER:
            assert content["finish_reason"] in ("stop", "length") and isinstance(content["response"], str)
        else:
            assert content["error"] and "\n" not in content["error"] and len(content["error"]) < 500


def work(engine, tokenizer, settings, records):
    worker = Worker(engine, tokenizer, settings, RowOptions())
    return [result for results, _ in answer_all(worker, records) for result in results]


@tried(200)
@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from(["raw", "chatml"]))
def test_rows(tokenizer, rows, chat_format):
    records = [Record(number, row) for number, row in enumerate(rows, 1)]
    check(work(FakeEngine(), tokenizer, GenerationSettings(chat_format=chat_format), records), len(rows))


@tried(40)
@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from(["raw", "chatml"]))
def test_rows_with_the_model_itself(model, tokenizer, rows, chat_format):
    for row in rows:  # so that it takes no minutes: a row may want as much as there is room for
        for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
            if name in row:
                row[name] = 2
    records = [Record(number, row) for number, row in enumerate(rows, 1)]
    settings = GenerationSettings(chat_format=chat_format, max_new_tokens=3)
    check(work(Engine(model, max_batch=3), tokenizer, settings, records), len(rows))


NUMERALS = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,5})?", fullmatch=True)
ESCAPED = st.text(max_size=9).map(json.dumps)
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9).map(
    lambda text: json.dumps(text, ensure_ascii=False))
HARD = st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\\\", '\\"', "[", "}", ",", "é", "a"]), max_size=6)
STRINGS = ESCAPED | PLAIN | HARD.map("".join).map('"{}"'.format)
SPACE = st.text(" \t\r\n", max_size=2)


def nested(inner):
    """Texts of JSON's lists and objects, with white space and keys that may be there twice."""
    lists = st.lists(inner, max_size=3).map(",".join).map("[{}]".format)
    return lists | st.lists(st.builds("{}{}:{}{}".format, SPACE, STRINGS, SPACE, inner), max_size=3).map(
        ",".join).map("{{{}}}".format)


JSON = st.recursive(NUMERALS | STRINGS | st.sampled_from(["true", "false", "null", "-0"]), nested, max_leaves=8)


@tried(200)
@given(st.lists(st.tuples(SPACE, JSON, SPACE), max_size=4), st.sampled_from([1, 2, 3, 7, 2 ** 20]))
def test_an_array_has_the_rows_that_lines_have(tmp_path_factory, items, piece):
    folder = tmp_path_factory.mktemp("rows")
    lines, array = folder / "in.jsonl", folder / "in.json"
    lines.write_text("\n".join(" ".join((*before, text, *after)).replace("\n", " ").replace("\r", " ")
                               for before, text, after in items), encoding="utf-8")
    array.write_bytes(f"[{','.join(map(''.join, items))}]".encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "PIECE", piece)
        found, expected = list(read_records(array, "json")), list(read_records(lines, "jsonl"))
    assert [(row.fields, row.error) for row in found] == [(row.fields, row.error) for row in expected]
    assert repr([row.fields for row in found]) == repr([row.fields for row in expected]), "-0 is not 0"


@tried(150)
@given(st.binary(max_size=60) | st.lists(values().map(lambda value: json.dumps(value).encode()), max_size=4).map(
    b"\n".join) | st.lists(ROWS, max_size=3).map(lambda rows: json.dumps(rows, default=str).encode()),
    st.sampled_from(sorted(FORMATS)))
def test_files(tokenizer, tmp_path_factory, content, format):
    path = tmp_path_factory.mktemp("rows") / "in"
    path.write_bytes(content)
    try:
        records = list(read_records(path, format))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
        return
    results = work(FakeEngine(), tokenizer, GenerationSettings(), records)
    assert len(results) == len(records)
    for result in results:
        json.loads(dump_json(result.content), parse_constant=refuse)
