"""The kernel set of the CPU: C++ in `csrc/`, built with g++ on first use, called through `ops.Custom`."""
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType

from qwen_mindspore.checkpoint.packing import unpack
from qwen_mindspore.kernels.layer_table import LayerTable
from qwen_mindspore.kernels.portable import PortableKernels

__all__ = ["CpuKernels", "KernelsUnavailable", "build_library"]

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC",
         "-shared", "-pthread", "-Wno-psabi"]


class KernelsUnavailable(Exception):
    """The C++ kernels can't be built here; the message says why and what to do."""


def build_library():
    """
    The shared library of the kernels, from the user's cache (`$XDG_CACHE_HOME/qwen-mindspore/kernels`), where it is
    built if there is none for this source, these flags and this CPU. Safe when several processes start at once.

    Returns:
        Path.

    Raises:
        KernelsUnavailable: There is no compiler, or it failed.
    """
    sources = sorted(SOURCES.glob("*.cc"))
    compiler = os.environ.get("CXX", "g++")
    key = hashlib.sha256(repr((compiler, FLAGS, _cpu())).encode())
    for file in sorted(SOURCES.iterdir()):
        key.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-mindspore" / "kernels"
    library = cache / f"qwen_kernels-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    if shutil.which(compiler) is None:
        raise KernelsUnavailable(f"no C++ compiler {compiler}: install g++ for kernels many times faster")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / library.name
        result = subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(built)], capture_output=True,
                                text=True, check=False)
        if result.returncode:
            error = next((line for line in result.stderr.splitlines() if "error" in line), "unknown error")
            raise KernelsUnavailable(f"{compiler} could not build {SOURCES}: {error}")
        os.replace(built, library)
    return library


def _cpu():
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine(), platform.processor()
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


class CpuKernels(PortableKernels):
    """
    See `kernels` for the operations and their shapes; float32 only. All layers are one operator, linears and norms
    are others; a layer alone is portable around those. The kernels have no gradients, so in training the portable
    operations stand in.

    Raises:
        KernelsUnavailable: See `build_library`.
    """

    reads_whole_tables = False
    runs_layers_at_once = True

    def __init__(self, config):
        super().__init__(config)
        group_size = self.quantization.group_size if self.quantization else 0
        if self.quantization and self.quantization.bits == 4 and group_size > 1 and group_size % 2:
            raise KernelsUnavailable(f"4-bit weights: expected an even group_size, found {group_size}")
        library = build_library()
        self.portable = PortableKernels(config)
        has_zeros = self.quantization is not None and not self.quantization.sym
        self.settings = Tensor([config.rms_norm_eps, group_size, has_zeros, config.block_size], ms.float32)
        # What a quantized linear has besides its weight: scales, perhaps zeros and an order. Any of them may be quantized.
        more = (0, 2 - self.quantization.sym + self.quantization.desc_act) if self.quantization else (0,)
        self.norm_op = _custom_op(library, "QwenRmsNorm", 3)
        self.linear_op = _custom_ops(library, "QwenLinear", {3 + bias + parts for bias in (0, 1) for parts in more})
        self.layers_op = _custom_ops(library, "QwenLayers", (10, 11))
        self.layers_whole_op = _custom_op(library, "QwenLayersWhole", 8)

    def rms_norm(self, x, weight, epsilon):
        """See PortableKernels."""
        if self.training:
            return self.portable.rms_norm(x, weight, epsilon)
        return self.norm_op(x, self.settings, weight)

    def linear(self, x, weights):
        """See PortableKernels."""
        if self.training:
            return self.portable.linear(x, weights)
        inputs = (x, self.settings) + self._present(weights)
        return self.linear_op[len(inputs)](*inputs)

    def layers(self, x, place, rotation, slot_mapping, block_tables, lengths, queries):
        """See the package."""
        sequences = (block_tables, lengths) if queries is None else (block_tables, lengths, queries)
        inputs = (x, self.settings, place, *rotation, slot_mapping, *sequences)
        return self.layers_op[len(inputs)](*inputs)

    def layers_whole(self, x, place, rotation, input_ids):
        """See the package."""
        return self.layers_whole_op(x, self.settings, place, *rotation, input_ids)

    def layer_table(self, layers):
        """See LayerTable."""
        return LayerTable(layers, self.quantization)

    def prepare_quantized(self, weight, scales, zeros):
        """
        8 bits as signed numbers, less half of the range. Of 4 bits, 32 levels of a group at a time in 16 bytes: inputs
        0 .. 15 in the low halves, 16 .. 31 in the high ones, which unpacking to vectors takes the fewest steps for;
        what is left of a group stays two a byte.
        """
        half_range = 2 ** (self.quantization.bits - 1)
        if self.quantization.sym and (zeros != half_range).any():
            raise ValueError(f"quantization: sym: expected all zeros to be {half_range}, found "
                             f"{zeros[zeros != half_range][0]}: set it to false")
        if self.quantization.bits == 8:
            return weight ^ 0x80, scales, zeros
        half = weight.shape[1] if self.quantization.group_size == -1 else self.quantization.group_size // 2
        prepared = weight.copy()
        for first in range(0, weight.shape[1], half):
            last = first + min(half, weight.shape[1] - first) // 16 * 16
            levels = unpack(weight[:, first:last].reshape(len(weight), -1, 16), 4)
            prepared[:, first:last] = (levels[..., :16] | levels[..., 16:] << 4).reshape(len(weight), -1)
        return prepared, scales, zeros

    def _present(self, weights):
        """Without what is None, and without zeros that are all the same."""
        bias = weights[-1:] if weights[-1] is not None else ()
        if len(weights) == 2:
            return weights[:1] + bias
        weight, scales, zeros, order, _ = weights
        parts = (weight, scales) if self.quantization.sym else (weight, scales, zeros)
        return parts + bias if order is None else parts + (order,) + bias


def _custom_op(library, name, inputs):
    """The operator of csrc/ops.cc, for so many inputs."""
    info = CustomRegOp(f"{name}{inputs}").target("CPU")
    for i in range(inputs):
        info = info.input(i, f"x{i}")
    info = info.output(0, "y").dtype_format(*[DataType.None_None] * (inputs + 1)).get_op_info()
    return ops.Custom(f"{library}:{name}", out_dtype=ms.float32, func_type="aot", reg_info=info)


def _custom_ops(library, name, counts):
    """{inputs: operator}"""
    return {count: _custom_op(library, name, count) for count in counts}
