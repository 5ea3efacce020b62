"""Packages that only some tasks need."""
import sys

import pytest

from qwen_mindspore.checkpoint.demo_model import rank_tokens
from qwen_mindspore.checkpoint.gguf import gguf_bytes
from qwen_mindspore.common.extras import import_extra


def test_the_module_is_given():
    import json.decoder

    assert import_extra("json.decoder", "batch", "this") is json.decoder


def test_one_that_is_missing_is_an_error_that_says_which_extra_has_it():
    with pytest.raises(ValueError) as error:
        import_extra("no_such_package.part", "batch", "in.x: reading it")
    assert str(error.value) == "in.x: reading it needs no_such_package: pip install 'qwen-mindspore[batch]'"


@pytest.mark.parametrize("package, work", [
    ("gguf", lambda: gguf_bytes("x.gguf")), ("transformers", lambda: rank_tokens([], []))])
def test_the_demo_and_the_benchmark_say_it(package, work, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'qwen-mindspore\[gguf\]'"):
        work()
