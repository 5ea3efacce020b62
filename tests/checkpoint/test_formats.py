"""Rows of tensors as numpy arrays, whatever the file's format and the tensor's type: checkpoint.formats."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.checkpoints import save
from qwen_mindspore.checkpoint.formats import READERS, Stored, write_ckpt

TYPES = ["float32", "float16", "bfloat16", "int32", "uint8"]


def write(path, tensor):
    if path.suffix == ".ckpt":
        stored = {"a": Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))}
        with open(path, "wb") as file:
            write_ckpt(file, stored, lambda name: [memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")])
    else:
        save(path, {"a": tensor})


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("dtype", TYPES)
def test_an_array_holds_what_the_tensor_holds_floats_in_32_bits(tmp_path, suffix, dtype):
    path = tmp_path / f"model{suffix}"
    tensor = torch.linspace(-3, 250, 30).reshape(5, 2, 3).to(getattr(torch, dtype))
    write(path, tensor)
    reader = READERS[suffix](path)
    array = reader.array("a", 1, 4)
    assert array.dtype == (np.float32 if tensor.is_floating_point() else np.dtype(dtype))
    assert torch.equal(torch.from_numpy(array.copy()).to(tensor.dtype), tensor[1:4])
    assert torch.equal(reader.read("a", 1, 4), tensor[1:4])


@pytest.mark.process
def test_a_checkpoint_in_32_bits_is_read_without_torch(tmp_path):
    """Importing it takes longer than everything else that a short answer needs."""
    path = tmp_path / "model.safetensors"
    write(path, torch.ones(2, 3))
    program = """
import sys
from qwen_mindspore.checkpoint.files import Checkpoint, checkpoint_files
print(Checkpoint(checkpoint_files(sys.argv[1])).array("a", 0, 2).sum(), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "6.0 False\n"
