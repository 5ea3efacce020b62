"""Importing MindFormers without what prediction never touches: qwen_mindspore.common.deferred_imports."""
import subprocess
import sys
import textwrap

import pytest

from qwen_mindspore.common.deferred_imports import UNTOUCHED, deferred_imports

LIBRARY = """
class Writer:
    def write(self):
        return "written"
VERSION = (1, 2)
__version__ = "1.2"
__all__ = ["Writer"]
def load(name="x"):
    return name * 2
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package `slow_library` with modules `inner` and `inner.deep`; its import leaves a trace in sys.modules."""
    package = tmp_path / "slow_library"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(LIBRARY)
    (package / "inner" / "__init__.py").write_text(LIBRARY)
    (package / "inner" / "deep.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_library"
    for name in [name for name in sys.modules if name.startswith("slow_library")]:
        del sys.modules[name]


def test_an_import_in_between_gives_a_stand_in_and_afterwards_the_library(library):
    with deferred_imports([library]):
        import slow_library
        stand_in = slow_library
        assert "__version__" not in vars(stand_in)
    assert library not in sys.modules
    import slow_library
    assert slow_library is not stand_in and slow_library.VERSION == (1, 2)


def test_a_stand_in_becomes_what_it_stands_for_where_it_is_used(library):
    with deferred_imports([library]):
        import slow_library
        import slow_library.inner.deep
        from slow_library import VERSION, Writer, load
        from slow_library.inner import deep
    assert library not in sys.modules
    assert load("ab") == "abab" and load(name="c") == "cc"
    assert VERSION[1] == 2 and list(VERSION) == [1, 2] and 2 in VERSION
    assert Writer().write() == deep.Writer().write() == "written"
    assert slow_library.__version__ == "1.2"
    assert slow_library.inner.deep.load("z") == "zz"

    import slow_library as imported
    assert isinstance(imported.Writer(), Writer) and issubclass(imported.Writer, Writer)
    assert not isinstance("text", Writer)


def test_what_is_used_in_between_is_imported_then(library):
    with deferred_imports([library]):
        from slow_library import Writer

        class Mine(Writer):
            pass

        from slow_library import Writer as Real
        exec("from slow_library.inner import *", everything := {})
    assert everything["Writer"]().write() == "written" and "VERSION" not in everything
    assert Mine().write() == "written" and issubclass(Mine, Real) and isinstance(Real, type)


def test_a_union_with_a_stand_in_is_one_with_the_class(library):
    with deferred_imports([library]):
        from slow_library import Writer
    import slow_library
    assert (Writer | None) == (slow_library.Writer | None) and (None | Writer) == (None | slow_library.Writer)


def test_what_is_not_there_is_not_found_as_ever(library):
    with deferred_imports([library, "no_such_library"]):
        with pytest.raises(ModuleNotFoundError, match="no_such_library"):
            import no_such_library  # noqa: F401
        from slow_library import nothing
        from slow_library.no_such_module import load
    with pytest.raises(ImportError, match="nothing"):
        nothing()
    with pytest.raises(ImportError, match="no_such_module"):
        load()


def test_what_was_imported_before_is_itself(library):
    import slow_library as before
    with deferred_imports([library]):
        import slow_library
    assert slow_library is before and sys.modules[library] is before


@pytest.mark.process
def test_mindformers_is_imported_without_them_and_is_whole():
    program = f"""
        import sys
        from qwen_mindspore.common.deferred_imports import import_mindformers
        import_mindformers()
        found = [name for name in {(*UNTOUCHED, "torch", "pandas")} if name in sys.modules]
        assert not found, found

        # What MindFormers itself does with them works.
        from mindformers.core.metric.metric import SmoothingFunction, sentence_bleu
        one = sentence_bleu([["a", "b", "c", "d"]], ["a", "b", "c", "d"],
                            smoothing_function=SmoothingFunction().method3)
        assert one == 1.0
        from mindformers.utils.tensorboard import SummaryWriter
        import tensorboardX
        assert issubclass(tensorboardX.SummaryWriter, SummaryWriter)
        from mindformers.dataset.dataloader import hf_dataloader
        import datasets
        assert hf_dataloader.datasets.load_dataset is datasets.load_dataset
        from mindspore.train.metrics import HausdorffDistance
        print("whole")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["whole"], done.stderr
