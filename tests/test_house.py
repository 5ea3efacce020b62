"""The rules that hold the house together, by what the files import and how long they are. See CONTRIBUTING.md."""
import ast
import subprocess
import sys

import pytest

from helpers import ROOT

HOME = ROOT / "research/qwen"
PACKAGE = HOME / "qwen_mindspore"

# From the ground up; a module imports from lower floors, and from its own room. A name without a folder is a module.
FLOORS = (
    ("common",),
    ("families",),
    ("checkpoint", "text"),
    ("kernels",),
    ("model",),
    ("generate",),
    ("chat", "batch", "server", "tune", "quantize", "evaluate", "bench", "audit"),
    ("cli",),
)
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}

# Names of MindSpore's insides, which only common/mindspore_internals.py knows.
INSIDES = {"_cell_graph_executor", "_create_time", "_get_func_graph_proto", "_sequence_ops", "compile_cache",
           "data_ptr", "mind_ir_pb2", "phase_cache"}

MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = sorted([*ROOT.glob("convert/*.py"), *ROOT.glob("scripts/*.py"), *HOME.glob("run_*.py")])
FACADES = sorted(HOME.glob("qwen_*.py"))
SOURCES = sorted(path for folder in ("research", "convert", "scripts", "tests", "configs") for path in
                 (ROOT / folder).rglob("*") if path.suffix in (".py", ".cc", ".h", ".sh"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path):
    return str(path.relative_to(ROOT))


def name_of(path):
    """research/qwen/qwen_mindspore/model/config.py -> qwen_mindspore.model.config"""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(tree):
    """Every module of this package that is imported anywhere in a file, in functions as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= within & NAMES or {node.module}
    return {name for name in found if name.partition(".")[0] == PACKAGE.name}


def room_of(name):
    return [*name.split("."), ""][1]


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) in LEVEL], ids=shown)
def test_imports_go_downward_only(path):
    room = room_of(name_of(path))
    for imported in map(room_of, imports_of(tree_of(path))):
        assert imported in ("", room) or LEVEL[imported] < LEVEL[room], f"{room} imports {imported}"


def test_every_room_is_on_a_floor():
    rooms = {room_of(name_of(path)) for path in MODULES}
    assert rooms - {"", "register"} <= set(LEVEL), "add the room to FLOORS"


def test_what_is_installed_is_what_there_is():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["packages"]) == {name_of(path) for path in MODULES if path.name == "__init__.py"} | {
        "qwen_mindspore.configs"}
    assert set(setuptools["py-modules"]) == {path.stem for path in HOME.glob("*.py")}
    folders = {path.parent.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    patterns = setuptools["package-data"]["qwen_mindspore.configs"]
    assert {str(folder / "*.yaml") for folder in folders} == set(patterns)


def test_the_hook_imports_nothing_before_mindformers_is_there():
    assert imports_of(tree_of(PACKAGE / "register.py")) == set()


def test_no_module_imports_itself_by_way_of_others():
    graph = {name_of(path): imports_of(tree_of(path)) & NAMES for path in MODULES}
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name):], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


# Hides what is named, as on a machine that hasn't it.
WITHOUT = """
import importlib, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_AfterMindFormers"]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise AssertionError(f"{{name}} is imported")

sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    importlib.import_module(module)
"""


def import_without(modules, hidden):
    code = WITHOUT.format(modules=sorted(modules), hidden=tuple(hidden))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.process
def test_the_lowest_rooms_and_the_quantizer_import_without_mindspore_and_mindformers():
    rooms = ("common", "families", "checkpoint", "quantize")
    import_without([name for name in NAMES if room_of(name) in rooms], ["mindspore", "mindformers"])


@pytest.mark.process
def test_commands_say_what_they_do_without_what_only_some_need():
    modules = [f"qwen_mindspore.cli.{name}" for name in ("main", "predict", "chat", "batch", "convert", "export",
                                                          "quantize", "demo_model", "benchmark", "cache", "serve")]
    import_without(modules, ["pyarrow", "gguf", "ray", "matplotlib", "transformers", "fastapi", "uvicorn",
                             "prometheus_client", "llguidance"])


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".py"], ids=shown)
def test_nobody_edits_the_path_of_modules(path):
    if path.parent == ROOT / "tests" and path.name == "conftest.py":
        return
    for node in ast.walk(tree_of(path)):
        is_path = isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", "") == "sys"
        assert not is_path, f"line {node.lineno}: sys.path"


@pytest.mark.parametrize("path", COMMANDS, ids=shown)
def test_a_command_is_an_import_and_a_call(path):
    docstring, *imports, guard = tree_of(path).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    assert [ast.unparse(node) for node in imports if isinstance(node, ast.Import)] == ["import sys"]
    froms = [node for node in imports if isinstance(node, ast.ImportFrom)]
    assert len(froms) == 1 and len(imports) == 2
    assert froms[0].module.startswith("qwen_mindspore.") and [alias.name for alias in froms[0].names] == ["main"]
    assert ast.unparse(guard) == "if __name__ == '__main__':\n    sys.exit(main())"


@pytest.mark.parametrize("path", FACADES, ids=shown)
def test_a_flat_module_hands_on_and_nothing_else(path):
    docstring, *imports, names = tree_of(path).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in imports)
    assert "qwen_mindspore.generate.loop" in imports_of(tree_of(path)), "which registers all that a YAML may name"
    handed = {alias.name for node in imports if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert ast.unparse(names.targets[0]) == "__all__" and set(ast.literal_eval(names.value)) == handed


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_file_has_at_most_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "mindspore_internals.py"], ids=shown)
def test_one_module_knows_the_insides_of_mindspore(path):
    tree = tree_of(path)
    words = {getattr(node, "attr", None) or getattr(node, "id", None) for node in ast.walk(tree)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            words |= {word for alias in node.names for word in alias.name.split(".")}
            words |= set((getattr(node, "module", None) or "").split("."))
    found = sorted(words & INSIDES)
    assert found == [], "a function in common/mindspore_internals.py is the place"
