"""Each set that this machine can run, and random arrays."""
import numpy as np
import pytest

from qwen_mindspore.kernels import runnable_kernels


@pytest.fixture(autouse=True)
def no_forced_set(monkeypatch):
    monkeypatch.delenv("QWEN_KERNELS", raising=False)


@pytest.fixture(params=[name for name in runnable_kernels() if name != "portable"])
def other_set(request):
    return request.param


@pytest.fixture
def random():
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape, np.float32)
