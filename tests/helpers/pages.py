"""The project's pages taken apart: their blocks of code, the marks before them, the commands in them, their links."""
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

SHELL = ("bash", "console", "sh", "shell")
FENCE = re.compile(r"( *)(```+)\s*(\w*)")
COMMENT = re.compile(r"<!--\s*(.*?)\s*-->")
HEADING = re.compile(r"#{1,6} +(.+?)\s*#*$")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")

# Runs blocks one after the other with the same names, as typed at one prompt; a traceback names the page and the line.
RUN_PYTHON = """
import json, sys
names = {"__name__": "__main__"}
for number, (place, line, code) in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
    exec(compile("\\n" * (line - 1) + code, place, "exec"), names)
    print(f"\\n{sys.argv[2]}{number}", flush=True)
"""
END = "\x01end of block "


@dataclass(frozen=True)
class Block:
    """
    A block of code.

    Attributes:
        page (Path): Where it stands.
        line (int): Of its first line of code, from 1.
        language (str): As the fence says, "" where it doesn't.
        code (str): What is between the fences.
        mark (str): The HTML comment directly before it, "" where there is none.
    """

    page: Path
    line: int
    language: str
    code: str
    mark: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self):
        """Whether it holds commands."""
        return self.language in SHELL


def blocks_of(page):
    """list[Block] of a page, in order."""
    found, mark, lines = [], "", page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence, comment = FENCE.match(lines[number]), COMMENT.fullmatch(lines[number].strip())
        number += 1
        if fence:
            indent, ticks, language = fence.groups()
            end = next(i for i in range(number, len(lines)) if lines[i].strip() == ticks)
            code = "".join(line.removeprefix(indent) + "\n" for line in lines[number:end])
            found.append(Block(page, number + 1, language, code, mark))
            number = end + 1
        if fence or comment or lines[number - 1].strip():
            mark = comment[1] if comment and not fence else ""
    return found


def prose_of(page):
    """The text of a page without its blocks and comments."""
    text = page.read_text(encoding="utf-8")
    return COMMENT.sub("", re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL))


def links_of(page):
    """The addresses that a page links to."""
    return LINK.findall(re.sub(r"`[^`]*`", "", prose_of(page)))


def anchors_of(page):
    """
    What a link to a place in a page may name, as GitHub makes it of the headings.

    Source: https://github.com/gjtorikian/html-pipeline (TableOfContentsFilter)
    """
    anchors = []
    for line in prose_of(page).splitlines():
        if heading := HEADING.fullmatch(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            anchors.append(f"{anchor}-{anchors.count(anchor)}" if anchor in anchors else anchor)
    return anchors


def commands_of(code):
    """The commands of a shell block, list[list[str]]: variables as they are, without assignments and redirections."""
    found, line = [], ""
    for part in code.replace("\\\n", " ").splitlines():
        line += part
        try:
            found += _split(line)
            line = ""
        except ValueError:  # a quotation that goes on in the next line
            line += "\n"
    return found + (_split(line) if line else [])


def _split(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands, words, is_target = [], [], False
    for word in lexer:
        if is_target:
            is_target = False
        elif set(word) <= set("<>&") and word not in ("&", "&&"):
            is_target = True
            if words and words[-1] in ("1", "2"):
                words.pop()
        elif set(word) <= set("();|&"):
            commands.append(words)
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word)
    return [command for command in [*commands, words] if command]


def run_shell(blocks, folder, environment):
    """
    Run shell blocks in one bash, each with what the ones before it left.

    Returns:
        list[str], the standard output of each.

    Raises:
        AssertionError: One failed; names it, with what it said.
    """
    script = ["set -e -o pipefail"]
    for number, block in enumerate(blocks):
        script.append(f"{{\n{block.code}}} > '{folder}'.{number}.out 2> '{folder}'.{number}.err < /dev/null")
    result = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, env=environment, timeout=900, check=False,
                            capture_output=True, text=True)
    outputs = []
    for number, block in enumerate(blocks):
        out, err = Path(f"{folder}.{number}.out"), Path(f"{folder}.{number}.err")
        is_last = not Path(f"{folder}.{number + 1}.out").exists()
        assert out.exists() and not (is_last and result.returncode), (
            f"{block}: exit code {result.returncode}\n{result.stderr}\n"
            f"{err.read_text(errors='replace')[-3000:] if err.exists() else ''}")
        outputs.append(out.read_text(encoding="utf-8"))
    return outputs


def run_python(blocks, folder, environment):
    """As `run_shell`, of Python blocks in one interpreter; MindFormers' log is in their outputs, too."""
    listed = Path(f"{folder}.json")
    listed.write_text(json.dumps([(str(block.page), block.line, block.code) for block in blocks]), encoding="utf-8")
    result = subprocess.run([sys.executable, "-c", RUN_PYTHON, str(listed), END], cwd=folder, env=environment,
                            capture_output=True, text=True, timeout=900, check=False)
    outputs = re.split(rf"\n{END}\d+\n", result.stdout)
    assert result.returncode == 0, f"{blocks[min(len(outputs), len(blocks)) - 1]}: {result.stderr[-3000:]}"
    return outputs[:-1]


def make_folder(folder, home, cache):
    """
    A folder for a page to be run in: what a user finds at the top of a checkout, and a home with this machine's cache.

    Args:
        folder, home (Path): To be made.
        cache (Path): The real cache: models and kernels are not made anew.

    Returns:
        dict, the environment of commands that run there.
    """
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".git", "output"):
            (folder / path.name).symlink_to(path)
    (home / ".cache").mkdir(parents=True)
    (home / ".cache/qwen-mindspore").symlink_to(cache)
    gone = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "REGISTER_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    # Scripts find their project by `cd` to the folder beside them: physical, that is the checkout's, with its .venv.
    return {**kept, "HOME": str(home), "SHELLOPTS": "physical", "LOG_MF_PATH": str(home / "log"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
