"""Reading rows of every format, the good ones and the bad ones, with their numbers."""
import json
import sys
from decimal import Decimal

import pytest

from qwen_mindspore.batch import records as batch_records
from qwen_mindspore.batch.records import count_records, file_format, read_records
from qwen_mindspore.common.files import sha256
from qwen_mindspore.common.json_text import dump_json

BOM = b"\xef\xbb\xbf"
PROMPTS = ["你好", 'a "quote", a comma', "two\nlines", "🙂 é é", "  spaces  "]


@pytest.fixture
def write(tmp_path):
    """A function that writes a file; without bytes the objects in its format."""
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


def read(path, format=None, **options):
    return list(read_records(path, file_format(path, format), **options))


def prompts(path, **options):
    return [(record.number, record.fields["prompt"]) for record in read(path, **options)]


def errors(path, **options):
    return [(record.number, record.error) for record in read(path, **options) if record.error]


def json_lines(end):
    return end.join(json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS).encode()


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_jsonl(write, mark, end, last):
    path = write("in.jsonl", mark + json_lines(end) + (end.encode() if last else b""))
    assert prompts(path) == list(enumerate(PROMPTS, 1)) and count_records(path, "jsonl") == 5


def test_empty_lines_of_jsonl_are_no_rows_but_count_as_lines(write):
    path = write("in.jsonl", '\n{"prompt": "a"}\n \r\n\t\n{"prompt": "b"}\n\n')
    assert prompts(path) == [(2, "a"), (5, "b")] and count_records(path, "jsonl") == 2


def test_bad_lines_of_jsonl_are_told_by_number_and_kept(write):
    lines = [b'{"prompt": "a"', b'{"prompt": "b"}', b'[1, 2]', b'{"prompt": "\xff"}', b'"text"', b'{"prompt": NaN}',
             b"[" * 100_000, b'{"prompt": "c"}']
    records = read(write("in.jsonl", b"\n".join(lines)))
    assert [record.fields for record in records if not record.error] == [{"prompt": "b"}, {"prompt": "c"}]
    told = {record.number: record.error for record in records if record.error}
    assert list(told) == [1, 3, 4, 5, 6, 7]
    for number, said in ((1, "invalid JSON"), (3, "expected an object of columns, found list"),
                         (4, "not UTF-8 at byte 13"), (5, "found str"), (6, "NaN"), (7, "invalid JSON")):
        assert said in told[number] and "\n" not in told[number]
    assert records[0].source == '{"prompt": "a"' and records[2].source == "[1, 2]"
    assert records[3].source == '{"prompt": "\ufffd"}'


def test_a_line_without_end_is_a_bad_row_not_a_full_memory(write, monkeypatch):
    monkeypatch.setattr(batch_records, "LONGEST", 100)
    path = write("in.jsonl", json.dumps({"prompt": "x" * 1000}) + '\n{"prompt": "b"}\n' + '{"prompt": "y"' + " " * 500)
    assert errors(path) == [(1, "longer than 0 MiB"), (3, "longer than 0 MiB")]
    assert read(path)[1].fields["prompt"] == "b"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_text_has_a_prompt_on_each_line(write, mark, end):
    path = write("in.txt", mark + end.join(["你好".encode(), b'{"a": "b"}', b"", "\u2028 is no end".encode()]))
    assert prompts(path) == [(1, "你好"), (2, '{"a": "b"}'), (3, ""), (4, "\u2028 is no end")]
    assert count_records(path, "text") == 4
    assert read(path, prompt_column="question")[0].fields == {"question": "你好"}


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_quotes_and_lines_in_values(write, mark, end):
    rows = ["id,prompt", *(f'{i},"{prompt}"' for i, prompt in enumerate(p.replace('"', '""') for p in PROMPTS))]
    path = write("in.csv", mark + end.join(rows).encode())
    assert prompts(path) == list(zip([2, 3, 4, 6, 7], PROMPTS)), "numbered by the line where a row begins"
    assert count_records(path, "csv") == 5
    assert read(path)[0].fields["id"] == "0"


def test_tsv(write):
    assert prompts(write("in.tsv", 'prompt\tid\n"a\tb"\t1\nc, d\t2\n')) == [(2, "a\tb"), (3, "c, d")]


def test_bad_rows_of_csv(write):
    rows = [b"id,prompt", b"1,a", b"2,a,b", b"3", b"", b'4,"a"b', b"5,\xff", b"6,c", b'7,"open', b"8,d"]
    path = write("in.csv", b"\n".join(rows))
    told = dict(errors(path))
    assert list(told) == [3, 4, 6, 7, 9]
    assert told[3] == "expected 2 values, as many as there are columns, found 3" and "found 1" in told[4]
    assert "invalid CSV" in told[6] and told[7] == "not UTF-8" and "unexpected end of data" in told[9]
    assert [record.fields["id"] for record in read(path) if not record.error] == ["1", "6"]
    assert read(path)[1].source == "2,a,b" and read(path)[4].source == "5,\ufffd"
    assert count_records(path, "csv") == len(read(path)) == 7


@pytest.mark.parametrize("mark", [b"", BOM])
def test_json(write, mark):
    objects = [{"prompt": prompt, "seed": 7, "top_p": 0.5} for prompt in PROMPTS]
    path = write("in.json", mark + json.dumps(objects, indent=1).encode())
    assert prompts(path) == list(enumerate(PROMPTS, 1)) and count_records(path, "json") == 5
    fields = read(path)[0].fields
    assert fields == objects[0] and type(fields["seed"]) is int and type(fields["top_p"]) is float
    path = write("in.json", '[{"prompt": "a"}, 3, {"prompt": "b"}]')
    assert errors(path) == [(2, "expected an object of columns, found int")] and read(path)[1].source == "3"


def test_json_that_is_no_array_or_broken_is_refused_before_anything_is_generated(write):
    for content, said in (('{"prompt": "a"}', "expected a JSON array, found b'{'.*--input_format jsonl"),
                          ('[{"prompt": "a"}, {"prompt": ', "invalid JSON"), ('[{"prompt": "a"}] x', "invalid JSON"),
                          (b'[{"prompt": "a"}, {"prompt": "\xff"}]', "invalid JSON: item 2: not UTF-8 at byte 13"),
                          ('[{"prompt": "a"} {}]', "invalid JSON: item 1: Extra data"),
                          ("[1,]", "invalid JSON: item 2"), ("[,1]", "invalid JSON: item 1"),
                          ("[", "invalid JSON"), ('["a', "invalid JSON"),
                          ('["a\\', "invalid JSON"), ("[1}", "invalid JSON: item 1: a } that closes nothing"),
                          ("[[}]", "invalid JSON"), ("[] []", "invalid JSON"), ("[1],", "invalid JSON"),
                          ("[NaN]", "invalid JSON: item 1: NaN"), (" " * 3_000_000 + "x", "expected a JSON array")):
        with pytest.raises(ValueError, match=rf"in.json: {said}"):
            count_records(write("in.json", content), "json")


@pytest.mark.parametrize("row", [
    r'{"prompt": "\ud83d", "id": "\ude00\ud83d"}', r'{"prompt": "\ud83d\ude00"}', '{"prompt": "\\\\\\", [{"}',
    '{"id": -0, "a": [-0, -0.0, 0e0, 1E5, 1.50, 1e400, -1e-400]}', '{"a": 1, "a": 2}', '{"\\u0061": 1, "": null}',
    "{}", "7", "[]", f'{{"id": {"9" * 5000}}}', f'{{"x": {"[" * 100}{"]" * 100}}}', '"text"', "true", "null", "-0",
    '{"p": "\u2028\x7f"}'])
def test_an_item_of_an_array_is_what_it_is_on_a_line(write, row):
    line = read(write("in.jsonl", f"{row}\n"))[0]
    for array in (f"[{row}]", f" [ {row}\t]\n", f'[{row},{{"a": "]"}}]'):
        item = read(write("in.json", array))[0]
        assert item == line and repr(item) == repr(line)


def test_an_item_without_end_is_a_bad_row_not_a_full_memory(write, monkeypatch):
    monkeypatch.setattr(batch_records, "LONGEST", 100)
    path = write("in.json", json.dumps([{"prompt": "x" * 5_000_000}, {"prompt": "b"}, {"prompt": "y" * 200}]))
    assert errors(path) == [(1, "longer than 0 MiB"), (3, "longer than 0 MiB")]
    assert read(path)[1].fields["prompt"] == "b"


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path = tmp_path / "in.parquet"
    table = pyarrow.table({"prompt": PROMPTS * 200, "history": [[["q", "a"]], None, None, None, []] * 200,
                           "messages": [[{"role": "user", "content": "x"}]] * 1000, "id": list(range(1000))})
    parquet.write_table(table, path, row_group_size=300)
    records = read(path)
    assert [(record.number, record.fields["prompt"]) for record in records] == list(enumerate(PROMPTS * 200, 1))
    assert records[0].fields["history"] == [["q", "a"]] and records[1].fields["history"] is None
    assert records[0].fields["messages"] == [{"role": "user", "content": "x"}] and records[999].fields["id"] == 999
    assert count_records(path, "parquet") == 1000
    with pytest.raises(ValueError, match="expected a column question, found prompt, history, messages, id"):
        count_records(path, "parquet", prompt_column="question")
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="in.parquet: not a Parquet file that can be read"):
        count_records(path, "parquet")


def test_numbers_keep_their_text_in_whatever_format(write, tmp_path):
    texts = ["1e400", "1.10", "123456789012345678901234567890.5", "12345678901234567890"]
    lines = [f'{{"prompt": "a", "id": {text}}}' for text in texts]
    for name, content in (("in.jsonl", "\n".join(lines)), ("in.json", f"[{', '.join(lines)}]")):
        written = [dump_json(record.fields["id"]).decode() for record in read(write(name, content))]
        assert written == texts


def test_a_nan_of_a_table_is_no_value(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path, nan = tmp_path / "in.parquet", float("nan")
    parquet.write_table(pyarrow.table({
        "prompt": ["a", "b"], "max_new_tokens": [2.0, nan], "id": [nan, 1.5],
        "price": pyarrow.array([Decimal("1.10"), None], pyarrow.decimal128(9, 2))}), path)
    rows = [record.fields for record in read(path)]
    assert rows == [{"prompt": "a", "max_new_tokens": 2.0, "id": None, "price": 1.1},
                    {"prompt": "b", "max_new_tokens": None, "id": 1.5, "price": None}]
    assert dump_json(rows[0]["price"]) == b"1.10"


def test_bytes_of_parquet_are_text_where_they_are_utf8_and_else_the_rows_error(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path = tmp_path / "in.parquet"
    table = {"prompt": ["你好".encode(), b"a\xff", b"b", b"c"], "id": [b"x", b"y", b"z", b"\xff"],
             "history": [[[b"q", "ä".encode()]], None, [[b"\xff", b""]], None], "image": [b"\x89PNG\xff"] * 4}
    parquet.write_table(pyarrow.table(table), path)
    rows = read(path)
    assert rows[0].fields["prompt"] == "你好" and rows[0].fields["history"] == [["q", "ä"]] and rows[0].error is None
    assert rows[0].fields["id"] == "x"
    assert rows[0].fields["image"] == b"\x89PNG\xff", "what nobody asks for is left alone"
    assert [row.error for row in rows[1:]] == ["prompt: expected text, found bytes that are not UTF-8",
                                               "history: expected text, found bytes that are not UTF-8", None]
    assert errors(path, prompt_column="image")[0] == (1, "image: expected text, found bytes that are not UTF-8")
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, *pyarrow.array([b"a", b"\xff"]).buffers()[1:]])
    parquet.write_table(pyarrow.table({"prompt": text}), path)
    assert [row.error for row in read(path)] == [None, "not UTF-8 at byte 1 of a text"]


def test_what_is_nested_too_deep_is_a_bad_row(write):
    deep = '{"prompt": "a", "x": ' + "[" * 500 + "]" * 500 + "}"
    for name, content in (("in.jsonl", f'{deep}\n{{"prompt": "b"}}'), ("in.json", f'[{deep}, {{"prompt": "b"}}]')):
        path = write(name, content)
        assert errors(path) == [(1, "invalid JSON: lists and objects are nested deeper than 100")]
        assert read(path)[1].fields == {"prompt": "b"}


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_an_item_that_is_a_hundred_thousand_deep_is_a_bad_row_in_little_memory(write, opening, closing):
    deep = opening * 100_000 + ("1" if closing == "}" else "") + closing * 100_000
    path = write("in.json", f'[{{"prompt": "a"}}, {deep}, {{"prompt": "[{{\\"[b", "x": []}}, [], 1]')
    assert count_records(path, "json") == 5
    assert errors(path) == [(2, "invalid JSON: lists and objects are nested deeper than 100"),
                            (4, "expected an object of columns, found list"),
                            (5, "expected an object of columns, found int")]
    assert read(path)[2].fields == {"prompt": '[{"[b', "x": []}
    for broken in (f"[{opening * 100_000}", f"[{deep}][1]", f"[{deep}] 1"):
        with pytest.raises(ValueError, match="in.json: invalid JSON"):
            read(write("in.json", broken))


def test_the_deepest_item_of_an_array_is_as_deep_as_a_line_may_be(write):
    fits, deep = (f'{{"prompt": "a", "x": {"[" * depth}{"]" * depth}}}' for depth in (99, 100))
    for name, content in (("in.jsonl", f"{fits}\n{deep}"), ("in.json", f"[{fits}, {deep}]")):
        assert [record.error is None for record in read(write(name, content))] == [True, False]


def test_a_number_beyond_all_measure_ends_no_reading(write):
    huge = '{"prompt": "a", "id": 1e99999999999999999999}'
    assert dump_json(read(write("in.jsonl", huge))[0].fields["id"]) == b"1e99999999999999999999"
    assert read(write("in.jsonl", f'{{"prompt": "a", "id": {"9" * 9999}}}'))[0].error is None
    assert dump_json(read(write("in.json", f"[{huge}]"))[0].fields["id"]) == b"1e99999999999999999999"


def test_without_a_package_it_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write("in.parquet", b"[]")
    with pytest.raises(ValueError) as error:
        count_records(path, "parquet")
    assert str(error.value) == f"{path}: reading Parquet needs pyarrow: pip install 'qwen-mindspore[batch]'"


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.tsv", "in.txt"])
@pytest.mark.parametrize("content", [b"", BOM])
def test_an_empty_file_has_no_rows(write, name, content):
    path = write(name, content)
    assert read(path) == [] and count_records(path, file_format(path)) == 0


def test_a_table_without_the_column_is_refused(write):
    path = write("in.csv", "question,id\na,1\n")
    with pytest.raises(ValueError, match="expected a column prompt or messages or query, found question, id; "
                                         "--prompt_col"):
        read(path)
    assert read(path, prompt_column="question")[0].fields["question"] == "a"
    with pytest.raises(ValueError, match="two columns have the same name"):
        read(write("in.csv", "prompt,prompt\na,b\n"))


def test_of_two_columns_of_one_name_in_parquet_none_is_lost(tmp_path):
    import pyarrow
    from pyarrow import parquet
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), path)
    for reads in (read, lambda path: count_records(path, "parquet")):
        with pytest.raises(ValueError, match="in.parquet: two columns have the same name: prompt, prompt"):
            reads(path)


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.txt"])
def test_finished_rows_are_skipped_without_looking_at_them(write, name):
    content = {"in.jsonl": '{"prompt": "a"}\nbad\n{"prompt": "c"}', "in.json": '[{"prompt": "a"}, 2, {"prompt": "c"}]',
               "in.csv": "prompt\na\nb,b\nc", "in.txt": "a\nb\nc"}[name]
    first = read(write(name, content))[0].number
    assert prompts(write(name, content), skip={first, first + 1}) == [(first + 2, "c")]


def test_what_is_not_utf8_is_said_at_once(write):
    with pytest.raises(ValueError, match="expected UTF-8, found UTF-16"):
        read(write("in.csv", "prompt\nä".encode("utf-16")))
    with pytest.raises(ValueError, match="expected UTF-8, found UTF-32"):
        read(write("in.csv", b"\0\0\xfe\xff" + "prompt\nä".encode("utf-32-be")))


def test_the_format_is_told_by_the_name(write, tmp_path):
    path = write("prompts", "a")
    with pytest.raises(ValueError, match="expected a name that ends in .jsonl, .*--input_format"):
        file_format(path)
    assert file_format(path, "text") == "text" and file_format(write("A.JSONL", "")) == "jsonl"
    with pytest.raises(FileNotFoundError, match="missing.csv: no such file"):
        file_format(tmp_path / "missing.csv")


def test_the_digest_is_that_of_the_whole_file(write):
    assert sha256(write("a", b"x" * 3_000_000)) != sha256(write("a", b"x" * 2_999_999 + b"y"))


def test_names_of_columns_stay_on_one_line(write):
    for header in ("a\x0bb,\x1b[2J", ",".join(f"column {number}" for number in range(1000))):
        with pytest.raises(ValueError, match="expected a column prompt") as error:
            read(write("in.csv", f"{header}\n1,2\n"))
        said = str(error.value)
        assert len(said.splitlines()) == 1 and len(said) < 500 and "\x1b" not in said


def test_a_name_that_is_there_twice_is_the_rows_error_be_it_a_line_or_an_item(write):
    row = '{"prompt": "a", "max_tokens": 2, "max_tokens": 3}'
    for path in (write("in.jsonl", f'{row}\n{{"prompt": "b"}}\n'), write("in.json", f'[{row}, {{"prompt": "b"}}]')):
        bad, good = read(path)
        assert bad.error == 'invalid JSON: "max_tokens" is there twice in one object' and bad.source == row
        assert good.fields == {"prompt": "b"}
