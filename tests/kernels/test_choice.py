"""Which set is taken, and how the `cpu` set's library is built."""
import platform

import pytest

from helpers.kernels import make_kernels
from qwen_mindspore.common.cpus import usable_cpus
from qwen_mindspore.kernels import build_kernels, cpu
from qwen_mindspore.kernels.cpu import build_library, wanted_threads
from qwen_mindspore.kernels.portable import PortableKernels
from qwen_mindspore.model.config import QwenConfig

PLAIN = {"x86_64": "x86-64", "aarch64": "armv8-a"}[platform.machine()]  # a CPU without extensions


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


def test_the_library_is_built_once_and_again_for_another_compiler_and_another_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu, "FLAGS", ["-O0" if flag == "-O3" else flag for flag in cpu.FLAGS])  # so it takes seconds
    monkeypatch.delenv("QWEN_KERNEL_MARCH", raising=False)
    first = build_library()
    built = first.stat().st_mtime_ns
    assert build_library() == first and first.stat().st_mtime_ns == built
    monkeypatch.setenv("QWEN_KERNEL_MARCH", "native")
    assert build_library() == first
    monkeypatch.setenv("QWEN_KERNEL_MARCH", PLAIN)
    assert build_library() != first
    monkeypatch.setenv("CXX", "c++")
    assert build_library() != first
    assert [path.suffix for path in first.parent.iterdir()] == [".so"] * 3, "nothing half-built is left"


def test_a_cpu_that_the_compiler_does_not_know_is_an_error_and_no_reason_for_slower_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("QWEN_KERNEL_MARCH", "abacus")
    with pytest.raises(ValueError, match=r"QWEN_KERNEL_MARCH: expected native or another -march .*found 'abacus'"):
        make_kernels("auto")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is x86's")
def test_instructions_that_this_cpu_has_not_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("QWEN_KERNEL_MARCH", "haswell")
    monkeypatch.setattr(cpu, "_cpu", lambda: ["model name : an older one", "flags : fpu sse2 avx f16c bmi2"])
    with pytest.raises(ValueError, match="QWEN_KERNEL_MARCH: expected what this CPU can run, found 'haswell', which "
                                         "has AVX2, FMA: take native"):
        make_kernels("auto")
    assert not list(tmp_path.rglob("*.so"))


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
