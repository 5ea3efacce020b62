"""Which set is taken, and how the `cpu` set's library is built."""
import pytest

from helpers.kernels import make_kernels
from qwen_mindspore.common.cpus import usable_cpus
from qwen_mindspore.kernels import build_kernels
from qwen_mindspore.kernels.cpu import build_library, wanted_threads
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


@pytest.mark.parametrize("wanted", ["0", "-1", "many", "1.5"])
def test_a_number_of_threads_that_can_not_be(monkeypatch, wanted):
    monkeypatch.setenv("QWEN_NUM_THREADS", wanted)
    with pytest.raises(ValueError, match=f"QWEN_NUM_THREADS: expected a positive number, found '{wanted}'"):
        make_kernels("cpu")


def test_there_is_a_thread_for_each_processor_that_may_be_used(monkeypatch):
    monkeypatch.delenv("QWEN_NUM_THREADS", raising=False)
    assert wanted_threads() == usable_cpus()
    monkeypatch.setenv("QWEN_NUM_THREADS", "3")
    assert wanted_threads() == 3
