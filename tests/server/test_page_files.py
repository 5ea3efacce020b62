"""The files of the page, which no browser is needed for."""
import hashlib
import re

import pytest

from helpers import ROOT

PAGE = ROOT / "research/qwen/qwen_mindspore/server/page"
VENDOR = PAGE / "vendor"
OURS = sorted(path for path in PAGE.iterdir() if path.is_file())
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in
        (VENDOR / "README.md").read_text().splitlines() if re.search(r"[0-9a-f]{64}", line)]


def shown(path):
    return path.name


@pytest.mark.parametrize("file, digest", [(row[3], row[4]) for row in ROWS])
def test_vendored_files_are_those_of_the_table(file, digest):
    assert hashlib.sha256((VENDOR / file).read_bytes()).hexdigest() == digest


def test_the_table_names_each_file_and_each_package_has_its_license():
    files = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    assert files == {"README.md", *(row[3] for row in ROWS)}
    packages = {row[0] for row in ROWS}
    assert packages == {row[0] for row in ROWS if "LICENSE" in row[3]}


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in VENDOR.rglob("*") if path.is_file()) < 900_000
    assert sum(path.stat().st_size for path in OURS) < 150_000


@pytest.mark.parametrize("path", OURS, ids=shown)
def test_modules_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (300 if path.suffix == ".js" else 700)
    if path.suffix in (".js", ".css"):
        assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("path", OURS, ids=shown)
def test_nothing_is_fetched_from_elsewhere(path):
    names_of_kinds = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"'`)]*", path.read_text(encoding="utf-8"))
               ) <= names_of_kinds


def test_no_script_and_no_handler_stands_in_the_page_itself():
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"\son\w+=", page) == []


def test_what_the_page_loads_is_there():
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r"(?:src|href)=\"([^\"#]+)\"", page):
        assert (PAGE / name).is_file(), name
    for path in PAGE.glob("*.js"):
        for name in re.findall(r"(?:from|import) \"\./([^\"]+)\"", path.read_text(encoding="utf-8")):
            assert (PAGE / name).is_file(), f"{path.name}: {name}"


def test_elements_and_words_that_scripts_name_are_there():
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r"\bid=\"([^\"]+)\"", page))
    english, chinese = (set(re.findall(r"(?:^|[\s{])(\w+): \"", text)) for text in
                        (PAGE / "words.js").read_text(encoding="utf-8").split("const zh")[:2])
    assert english == chinese
    for path in PAGE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:byId|getElementById)\(\"([^\"]+)\"\)", text)) <= ids, path.name
        keys = re.findall(r"\b(?:t|tLabel|tPlaceholder): \"(\w+)\"", text) + re.findall(r"\bt\(\"(\w+)\"", text)
        assert set(keys) <= english, path.name
    assert set(re.findall(r"data-t(?:-label|-placeholder)?=\"([^\"]+)\"", page)) <= english
