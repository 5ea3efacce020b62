"""
What the pages say can be typed: every block of code is run, or a mark before it says why not; either way its scripts,
options, YAMLs and modules exist, and so do the places that pages link to.

A mark is an HTML comment before a block, one of `REASONS` or `output`: what the block before it prints, `...` standing
for anything. The blocks of a page are run in order, in a folder of its own with the top of the checkout in it.
"""
import ast
import importlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from doctest import ELLIPSIS, OutputChecker
from io import StringIO
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.pages import (
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    links_of,
    make_folder,
    prose_of,
    run_python,
    run_shell,
)
from qwen_mindspore.cli.main import VERBS
from qwen_mindspore.common.configs import read_config
from qwen_mindspore.common.files import cache_folder

README, CHINESE = ROOT / "README.md", ROOT / "README_CN.md"
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [README, CHINESE, *DOCS, ROOT / "CONTRIBUTING.md"]
LINKED = sorted([*PAGES, ROOT / "CHANGELOG.md", *ROOT.glob("tests/data/**/*.md")])

REASONS = (
    r"needs weights: Qwen-[\w., -]+",  # of a released model, which the tests don't have
    r"needs an NPU",
    r"needs a terminal",
    r"needs a cluster",
    r"needs docker",
    r"needs llama-cpp-python",  # built from source for several minutes
    r"takes long: [\w ]+",
    r"installs packages",
    r"runs the tests",
)
ORDINARY = {"cat", "cd", "cp", "curl", "cut", "docker", "echo", "export", "git", "head", "kill", "ls", "mkdir", "pip",
            "printf", "source"}

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL_BLOCKS = [block for block in BLOCKS if block.is_shell]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]


def shown(path):
    return str(path.relative_to(ROOT))


def has_reason(block):
    return any(re.fullmatch(reason, block.mark) for reason in REASONS)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_mark_is_one_of_the_list(block):
    assert block.mark in ("", "output") or has_reason(block), f"expected one of {', '.join(REASONS)}"
    if block.mark == "output":
        before = BLOCKS[BLOCKS.index(block) - 1]
        assert before.page == block.page and not before.mark and (before.is_shell or before.language == "python")


# How pages are read

def test_blocks_are_read_with_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("""Text
<!-- needs an NPU -->

```shell
ls
```
<!-- gone -->
- a list

  ```python
  if True:
      print()
  ```
""")
    assert blocks_of(page) == [Block(page, 5, "shell", "ls\n", "needs an NPU"),
                               Block(page, 11, "python", "if True:\n    print()\n", "")]


@pytest.mark.parametrize("code, commands", [
    ("A=1 ls -l \\\n  b  # c\n# d\n", [["ls", "-l", "b"]]),
    ("A=~/x\nls 'a\nb' | cat 2>/dev/null && source x; pip > y\n", [["ls", "a\nb"], ["cat"], ["source", "x"], ["pip"]]),
])
def test_commands_are_told_apart(code, commands):
    assert commands_of(code) == commands


@pytest.mark.process
def test_shell_blocks_share_what_they_set_and_one_that_fails_is_named(tmp_path):
    blocks = [Block(README, line, "shell", code, "") for line, code in ((5, "A=1; cd /\n"), (9, "echo $A $PWD\n"))]
    folder = tmp_path / "run"
    folder.mkdir()
    assert run_shell(blocks, folder, dict(os.environ)) == ["", "1 /\n"]
    failing = [*blocks, Block(README, 12, "shell", "ls /nowhere | cat\n", ""), Block(README, 15, "shell", "ls\n", "")]
    folder = tmp_path / "again"
    folder.mkdir()
    with pytest.raises(AssertionError, match="README.md:12: exit code 2(.|\n)*nowhere"):
        run_shell(failing, folder, {**os.environ, "LC_ALL": "C"})


@pytest.mark.process
def test_python_blocks_share_their_names_and_one_that_fails_is_named(tmp_path):
    blocks = [Block(README, line, "python", code, "") for line, code in ((5, "a = 1\n"), (9, "print(a)\n"))]
    assert run_python(blocks, tmp_path, dict(os.environ)) == ["", "1\n"]
    failing = [*blocks, Block(README, 12, "python", "\n1 / 0\n", ""), Block(README, 15, "python", "print(a)\n", "")]
    with pytest.raises(AssertionError, match='README.md:12: (.|\n)*README.md", line 13'):
        run_python(failing, tmp_path, dict(os.environ))


# What is typed is there

def check_script(path, arguments, monkeypatch, capsys):
    """A script of ours exists and takes these arguments."""
    assert (ROOT / path).is_file(), f"{path}: no such script"
    text = (ROOT / path).read_text(encoding="utf-8")
    module = re.search(r"from qwen_mindspore\.cli\.(\w+) import main", text)
    assert module, f"{path}: no command of the package"
    check_arguments(module[1], arguments, monkeypatch, capsys)


def check_arguments(name, arguments, monkeypatch, capsys):
    """A command of the package takes these arguments; its work is not done."""
    module = importlib.import_module(f"qwen_mindspore.cli.{name}")
    monkeypatch.setattr(module, "run_command", lambda *_, **__: 0)
    try:
        code = module.main(arguments)
    except SystemExit as error:
        code = error.code
    assert not code, capsys.readouterr().err


def check_bash(script, arguments, monkeypatch, capsys):
    assert (ROOT / script).is_file(), f"{script}: no such script"
    if script in ("scripts/chat.sh", "scripts/serve.sh"):
        check_arguments(Path(script).stem, arguments, monkeypatch, capsys)
    elif script == "scripts/demo.sh":
        assert len(arguments) <= 1


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_commands_exist_and_take_their_options(block, monkeypatch, capsys):
    for name, *arguments in commands_of(block.code):
        if Path(name).name == "python":
            if arguments[0] != "-m":
                check_script(arguments[0], arguments[1:], monkeypatch, capsys)
        elif name == "bash":
            check_bash(arguments[0], arguments[1:], monkeypatch, capsys)
        elif name == "qwen-ms":
            if arguments not in (["--help"], ["--version"]):
                assert arguments[0] in VERBS
                check_arguments(VERBS[arguments[0]][0], arguments[1:], monkeypatch, capsys)
        else:
            assert name in ORDINARY or (ROOT / name).is_file(), f"{name}: say in this test what it is"


@pytest.mark.parametrize("block", SHELL_BLOCKS + PYTHON_BLOCKS, ids=str)
def test_yamls_exist(block):
    made = re.findall(r"> *(\S+\.yaml)", block.code)
    for path in re.findall(r"[\w./-]+\.yaml", block.code.replace("$PWD/", "")):
        assert (ROOT / path).is_file() or path in made, f"{path}: no such YAML"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_a_yaml_is_one(block, tmp_path):
    path = tmp_path / "page.yaml"
    path.write_text(block.code.replace("/path/to", str(ROOT)), encoding="utf-8")
    assert read_config(path)


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_what_python_imports_exists(block):
    for node in ast.walk(ast.parse(block.code)):
        for module in [alias.name for alias in node.names] if isinstance(node, ast.Import) else ():
            importlib.import_module(module)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture(scope="module")
def options():
    """Every option of every command."""
    found = set()
    for module in {*(module for module, _ in VERBS.values()), "demo_model"}:
        with redirect_stdout(StringIO()) as help, pytest.raises(SystemExit):
            importlib.import_module(f"qwen_mindspore.cli.{module}").main(["--help"])
        found |= set(re.findall(r"(?<![\w-])--\w+", help.getvalue()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_options_that_the_text_names_exist(page, options):
    of_others = {"--register_path", "--cpus", "--publish", "--stop", "--time", "--tmpfs", "--user", "--isolation",
                 "--address", "--container", "--image"}  # of run_mindformer.py, docker, buildah, docker/*.sh
    named = {option for code in re.findall(r"`([^`]+)`", prose_of(page))
             for option in re.findall(r"(?<![\w-])--\w+", code)}
    assert sorted(named - options - of_others) == []


# Pages lead to each other

@pytest.mark.parametrize("page", LINKED, ids=shown)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors_of(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [README, CHINESE], ids=shown)
def test_the_readme_is_short_and_leads_to_every_page(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 100
    assert {shown(path) for path in DOCS} <= {link.partition("#")[0] for link in links_of(page)}


@pytest.mark.parametrize("page", [README, CHINESE], ids=shown)
def test_the_readme_says_before_the_first_command_that_no_npu_was_used(page):
    assert "NPU" in page.read_text(encoding="utf-8").partition("```")[0]


def test_the_readme_in_chinese_has_the_same_commands():
    def typed(page):
        return [(block.language, block.code, block.mark) for block in blocks_of(page)]

    assert typed(CHINESE) == typed(README)


# What is typed works

@pytest.fixture(scope="module")
def cache():
    """This machine's cache, with the demo model in it."""
    demo, folder = "smollm2-135m-qwen-ms", cache_folder("models")
    if not (folder / demo / "model.safetensors.index.json").is_file():
        from qwen_mindspore.checkpoint.convert import convert_weight
        from qwen_mindspore.checkpoint.demo_model import make_demo_model
        convert_weight(make_demo_model(), str(folder / demo), overwrite=True)
    return cache_folder()


def to_run(page, language):
    return [block for block in blocks_of(page) if not has_reason(block) and block.mark != "output"
            and (block.is_shell if language == "shell" else block.language == language)]


def run_page(page, folder, environment):
    """[(block, what it printed)] of the blocks of a page that can be run; AssertionError where one fails."""
    shell, python = to_run(page, "shell"), to_run(page, "python")
    printed = list(zip(shell, run_shell(shell, folder, environment)))
    return printed + list(zip(python, run_python(python, folder, environment) if python else []))


@pytest.fixture(scope="module")
def runs(request, cache, tmp_path_factory):
    """{page: Future of run_page} of the pages under test, two at a time: to start keeps a command to one core."""
    with ThreadPoolExecutor(2) as pool:
        futures = {}
        for item in request.session.items:
            if item.name.startswith("test_the_blocks_of_a_page_run"):
                page, place = item.callspec.params["page"], tmp_path_factory.mktemp("page")
                environment = make_folder(place / "checkout", place / "home", cache)
                futures[page] = pool.submit(run_page, page, place / "checkout", environment)
        yield futures
        pool.shutdown(cancel_futures=True)


def is_set_up():
    """Whether the scripts find the environment that runs the tests; they would make one otherwise."""
    return Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


@pytest.mark.process
@pytest.mark.skipif(not is_set_up(), reason="the scripts would make .venv: run scripts/test.sh")
@pytest.mark.parametrize("page", [page for page in PAGES if page != CHINESE and any(
    to_run(page, language) for language in ("shell", "python"))], ids=shown)
def test_the_blocks_of_a_page_run(page, runs):
    blocks = blocks_of(page)
    for block, printed in runs[page].result():
        after = blocks[blocks.index(block) + 1:][:1]
        if after and after[0].mark == "output":
            wanted, found = after[0].code.strip().splitlines(), printed.strip().splitlines()
            if not block.is_shell:  # what comes before it is MindFormers' log
                found = found[-len(wanted):]
            assert OutputChecker().check_output("\n".join(wanted) + "\n", "\n".join(found) + "\n", ELLIPSIS), (
                f"{after[0]}: found\n{printed}")
