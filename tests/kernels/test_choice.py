"""Which set is taken, and how the `cpu` set's library is built."""
import pytest

from helpers.kernels import make_kernels
from qwen_mindspore.kernels import build_kernels
from qwen_mindspore.kernels.cpu import build_library
from qwen_mindspore.kernels.portable import PortableKernels
from qwen_mindspore.model.config import QwenConfig


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="kernels: expected one of auto, .*portable.*found 'cuda'"):
        build_kernels(QwenConfig(kernels="cuda"))


def test_the_environment_forces_a_set(monkeypatch):
    monkeypatch.setenv("QWEN_KERNELS", "portable")
    assert type(make_kernels("auto")) is PortableKernels


def test_without_a_compiler_the_portable_set_is_taken_unless_the_other_is_forced(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert type(make_kernels("auto")) is PortableKernels
    with pytest.raises(ValueError, match="kernels cpu: no C.. compiler no-such-compiler: install"):
        make_kernels("cpu")


def test_the_library_is_built_once_and_again_for_another_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_library()
    built = first.stat().st_mtime_ns
    assert build_library() == first and first.stat().st_mtime_ns == built
    monkeypatch.setenv("CXX", "c++")
    assert build_library() != first
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".so", ".so"], "nothing half-built is left"
