"""Rows of JSONL, JSON, CSV, Parquet and text files of any size, one after the other; and what cannot be read as one."""
import codecs
import csv
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qwen_mindspore.batch.json_items import json_items
from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import check_encoding
from qwen_mindspore.common.json_text import DEEPEST, NamedTwice, dump_json, exact, parse_exact_json
from qwen_mindspore.common.text import listed, one_line

__all__ = ["FORMATS", "PROMPTS", "Record", "count_records", "file_format", "read_records"]

PROMPTS = ("prompt", "messages", "query")  # columns that hold what is to be answered
LONGEST = 16 * 2**20  # bytes of a line, characters of a CSV field: what is longer is no prompt but a broken file
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
            ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class Record:
    """
    One row of a file.

    Attributes:
        number (int): From 1. The line of a JSONL or text file, the line where a CSV row begins, the item of a JSON
            array, the row of a Parquet file.
        fields (dict): Column -> value; None where the row can't be read.
        error (str): Why it can't be.
        source (str): The row as it stands in the file, where it can't be read.
    """

    number: int
    fields: dict | None = None
    error: str | None = None
    source: str | None = None


def file_format(path, name=None):
    """
    The name of a file's format, by its suffix unless it is given; tab-separated CSV is "tsv".

    Raises:
        ValueError: A suffix that tells nothing.
        FileNotFoundError: No such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    name = name or SUFFIXES.get(Path(path).suffix.lower())
    if name is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, or --input_format")
    return name


def read_records(path, format, prompt_column=None, skip=()):
    """
    The rows of a file, as `Record`s in order. Never more than a few of them are in memory, or a part of a row group.

    Args:
        path (str | Path): The file, UTF-8 with or without a byte order mark where it is text.
        format (str): See `file_format`.
        prompt_column (str): A column that every row of a table must have; also the name that the lines of a text file
            get.
        skip: Numbers of rows that are left out, as a container.

    Raises:
        ValueError: A file that can't be read on: a JSON array with an error in it, a table without the column, ...
    """
    for number, row in FORMATS[format].rows(path, prompt_column):
        if number not in skip:
            yield FORMATS[format].record(number, row, prompt_column)


def count_records(path, format, prompt_column=None):
    """How many rows there are, those among them that can't be read. ValueError as for `read_records`."""
    return FORMATS[format].count(path, prompt_column)


class Rows:
    """A format: `rows` gives (number, row as it stands in the file), which is quick, `record` what a row means."""

    @classmethod
    def count(cls, path, prompt_column=None):
        """How many rows there are."""
        return sum(1 for _ in cls.rows(path, prompt_column))


class Lines(Rows):
    """A row a line: its `rows` are bytes, without the end of the line; None for a line beyond all bounds."""

    place = "line"

    @staticmethod
    def rows(path, _=None):
        """(number, line) of each line."""
        with open(path, "rb") as file:
            _skip_mark(file, path)
            number = 0
            while line := file.readline(LONGEST):
                number += 1
                is_whole = len(line) < LONGEST or line.endswith(b"\n")
                while len(line) == LONGEST and not line.endswith(b"\n"):
                    line = file.readline(LONGEST)
                yield number, line.rstrip(b"\r\n") if is_whole else None

    @classmethod
    def record(cls, number, line, prompt_column=None):
        """The Record of a line."""
        if line is None:
            return Record(number, error=f"longer than {LONGEST >> 20} MiB")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return Record(number, error=f"not UTF-8 at byte {error.start + 1}", source=line.decode("utf-8", "replace"))
        return cls.parse(number, text, prompt_column)

    @staticmethod
    def parse(number, text, prompt_column):
        """The Record of a line's text: the line is the prompt."""
        return Record(number, {prompt_column or "prompt": text})


class JsonLines(Lines):
    """A JSON object a line; empty lines are no rows."""

    @classmethod
    def rows(cls, path, _=None):
        """(number, line) of each line that isn't empty."""
        return ((number, line) for number, line in Lines.rows(path) if line is None or line.strip())

    @staticmethod
    def parse(number, text, prompt_column=None):
        """The Record of a line's text."""
        try:
            fields = parse_exact_json(text)
        except ValueError as error:
            return Record(number, error=f"invalid JSON: {error}", source=text)
        return _object(number, fields)


class JsonArray(Rows):
    """A JSON array of objects, of which one after the other is read."""

    place = "item"

    @staticmethod
    def rows(path, _=None):
        """(number, Record) of each item."""
        with open(path, "rb") as file:
            _skip_mark(file, path)
            try:
                for number, item in enumerate(json_items(file, LONGEST), 1):
                    yield number, _record(number, item)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None

    @staticmethod
    def record(number, record, prompt_column=None):
        """The Record of an item."""
        return record


class Csv(Rows):
    """A table with the names of its columns in the first line."""

    place = "line"
    dialect = "excel"

    @classmethod
    def rows(cls, path, prompt_column=None):
        """(number, (names, values)) of each row that isn't empty; a message in their place where it can't be read."""
        csv.field_size_limit(LONGEST)
        # Bytes that are not UTF-8 must not end the reading: they come through as surrogates and condemn their row.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            _skip_mark(file.buffer, path)
            reader = csv.reader(file, cls.dialect, strict=True)
            try:
                names = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{path}: line 1: invalid CSV: {one_line(error)}") from None
            if names is None:
                return
            _check_column(path, names, prompt_column)
            while True:
                number = reader.line_num + 1
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    values = f"invalid CSV: {one_line(error)}"
                if values:
                    yield number, (names, values)

    @staticmethod
    def record(number, row, prompt_column=None):
        """The Record of a row."""
        names, values = row
        if isinstance(values, str):
            return Record(number, error=values)
        shown = ",".join(values).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if len(values) != len(names):
            return Record(number, error=f"expected {len(names)} values, as many as there are columns, "
                                        f"found {len(values)}", source=shown)
        if any("\udc80" <= character <= "\udcff" for value in values for character in value):
            return Record(number, error="not UTF-8", source=shown)
        return Record(number, dict(zip(names, values)))


class Tsv(Csv):
    """A table separated by tabs."""

    dialect = "excel-tab"


class Parquet(Rows):
    """A table whose row groups are read a part at a time."""

    place = "row"

    @staticmethod
    def rows(path, prompt_column=None):
        """(number, (part of the table, row in it)) of each row."""
        with _parquet(path) as file:
            _check_column(path, file.schema_arrow.names, prompt_column)
            number = 0
            for part in file.iter_batches(batch_size=256):
                for row in range(part.num_rows):
                    number += 1
                    yield number, (part, row)

    @staticmethod
    def count(path, prompt_column=None):
        """How many rows there are."""
        with _parquet(path) as file:
            _check_column(path, file.schema_arrow.names, prompt_column)
            return file.metadata.num_rows

    @staticmethod
    def record(number, place, prompt_column=None):
        """The Record of a row."""
        part, row = place
        try:
            value = part.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            return Record(number, error=f"not UTF-8 at byte {error.start + 1} of a text")
        # A NaN is how tables say that there is no value.
        fields = _without_nans(_decoded(exact(value)))
        asked = [*([prompt_column] if prompt_column else PROMPTS), "system", "history"]
        bad = next((name for name in asked if _has_bytes(fields.get(name))), None)
        return Record(number, fields, bad and f"{bad}: expected text, found bytes that are not UTF-8")


FORMATS = {"jsonl": JsonLines, "json": JsonArray, "csv": Csv, "tsv": Tsv, "parquet": Parquet, "text": Lines}


@contextmanager
def _parquet(path):
    parquet = import_extra("pyarrow.parquet", "batch", f"{path}: reading Parquet")
    arrow_error = import_extra("pyarrow", "batch", f"{path}: reading Parquet").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (arrow_error, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {one_line(error)}") from None


def _record(number, item):
    """
    The Record of an item of a JSON array, as if it stood on a line of its own; ValueError where it is no JSON: what is
    behind it might be read wrongly.
    """
    if item.text is None:
        return Record(number, error=f"longer than {LONGEST >> 20} MiB")
    try:
        return _object(number, parse_exact_json(item.text.decode("utf-8")))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1}"
    except ValueError as error:
        reason = one_line(error)
        if item.depth > DEEPEST or isinstance(error, NamedTwice):
            return Record(number, error=f"invalid JSON: {reason}", source=item.text.decode("utf-8"))
    raise ValueError(f"invalid JSON: item {number}: {reason}")


def _skip_mark(file, path):
    """Go to behind the byte order mark of UTF-8; ValueError for that of another encoding."""
    start = file.read(4)
    check_encoding(start, path)
    file.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)


def _object(number, value):
    if isinstance(value, dict):
        return Record(number, value)
    return Record(number, error=f"expected an object of columns, found {type(value).__name__}",
                  source=dump_json(value).decode("utf-8"))


def _without_nans(fields):
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}


def _decoded(value):
    """The same value with text in place of bytes that are UTF-8, as tables without a type for text hold it."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {_decoded(name): _decoded(item) for name, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _has_bytes(value):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(map(_has_bytes, items))


def _check_column(path, names, prompt_column):
    """ValueError where a table has nothing to answer, or two columns of one name, of which one would be lost."""
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two columns have the same name: {listed(names)}")
    wanted = [prompt_column] if prompt_column else PROMPTS
    if not set(wanted) & set(names):
        raise ValueError(f"{path}: expected a column {' or '.join(wanted)}, found {listed(names)}; --prompt_column "
                         "names another")
