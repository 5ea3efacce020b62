"""The kernel set of the CPU: C++ in `csrc/`, built with g++ on first use, called through `ops.Custom`."""
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType

from qwen_mindspore.checkpoint.packing import Quantization, unpack
from qwen_mindspore.common.cpus import thread_count, usable_cpus
from qwen_mindspore.common.files import cache_folder, replacing
from qwen_mindspore.kernels.layer_table import LayerTable
from qwen_mindspore.kernels.portable import PortableKernels
from qwen_mindspore.kernels.weights import Kind

__all__ = ["CpuKernels", "KernelsUnavailable", "build_library", "wanted_threads"]

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared",
         "-pthread", "-Wno-psabi",
         *(f"-DQWEN_KIND_{kind.name}={kind.value}" for kind in Kind)]


class KernelsUnavailable(Exception):
    """The C++ kernels can't be built here; the message says why and what to do."""


def build_library():
    """
    The shared library of the kernels, from the user's cache (`$XDG_CACHE_HOME/qwen-mindspore/kernels`), where it is
    built if there is none for this source, these flags and this CPU. Safe when several processes start at once.

    The compiler is `CXX`, else g++. It makes code for this CPU, or for the one that QWEN_KERNEL_MARCH names as its
    `-march` does: "haswell" is AVX2, "x86-64" is what every such CPU has.

    Returns:
        Path.

    Raises:
        KernelsUnavailable: There is no compiler, or it failed, or no place for the library.
        ValueError: QWEN_KERNEL_MARCH is nothing that the compiler knows, or has what this CPU has not.
    """
    sources = sorted(SOURCES.glob("*.cc"))
    compiler = os.environ.get("CXX", "g++")
    march = os.environ.get("QWEN_KERNEL_MARCH") or "native"
    flags = [f"-march={march}", *FLAGS]
    key = hashlib.sha256(repr((compiler, flags, _cpu())).encode())
    for file in sorted(SOURCES.iterdir()):
        key.update(file.read_bytes())
    library = cache_folder("kernels", f"qwen_kernels-{key.hexdigest()[:16]}.so")
    if library.exists():
        return library
    try:
        return _compile(compiler, march, flags, sources, library)
    except OSError as error:
        raise KernelsUnavailable(f"{library} can't be written: {error.strerror}") from None


def _compile(compiler, march, flags, sources, library):
    if shutil.which(compiler) is None:
        raise KernelsUnavailable(f"no C++ compiler {compiler}: install g++ for kernels many times faster")
    if march != "native":
        _check_march(compiler, march)
    with replacing(library) as built:
        result = subprocess.run([compiler, *flags, *map(str, sources), "-o", str(built)], capture_output=True,
                                text=True, errors="replace", check=False)
        if result.returncode:
            error = next((line for line in result.stderr.splitlines() if "error" in line), "unknown error")
            raise KernelsUnavailable(f"{compiler} could not build {SOURCES}: {error}")
    return library


def wanted_threads():
    """
    Threads of the kernels: QWEN_NUM_THREADS, or one for each processor that may be used.

    Raises:
        ValueError: QWEN_NUM_THREADS is no positive number, or beyond what any machine has.
    """
    wanted = os.environ.get("QWEN_NUM_THREADS")
    return thread_count("QWEN_NUM_THREADS", wanted) if wanted else usable_cpus()


def _cpu():
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine(), platform.processor()
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _check_march(compiler, march):
    """ValueError unless the compiler knows it, and this CPU has the vector instructions of it: others end a process."""
    result = subprocess.run([compiler, f"-march={march}", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True,
                            text=True, check=False)
    if result.returncode:
        raise ValueError(f"QWEN_KERNEL_MARCH: expected native or another -march that {compiler} has for this machine, "
                         f"such as haswell or x86-64, found {march!r}")
    flags = {flag.replace("_", "") for line in _cpu() if line.startswith("flags") for flag in line.split()}
    needed = re.findall(r"^#define __((?:AVX|FMA|F16C|BMI2)\w*)__ 1$", result.stdout, re.MULTILINE)
    missing = sorted(name for name in needed if name.lower() not in flags)
    if flags and missing:
        raise ValueError(f"QWEN_KERNEL_MARCH: expected what this CPU can run, found {march!r}, which has "
                         f"{', '.join(missing)}: take native")


class CpuKernels(PortableKernels):
    """
    See `kernels` for the operations and their shapes; float32 only. All layers are one operator, linears and norms
    are others; a layer alone is portable around those. The kernels have no gradients, so in training the portable
    operations stand in.

    Raises:
        KernelsUnavailable: See `build_library`.
    """

    reads_whole_tables = False

    def __init__(self, config):
        super().__init__(config)
        quantization = Quantization.from_dict(config.quantization)
        problem = quantization and _problem(quantization)
        if problem:
            raise KernelsUnavailable(problem)
        library = build_library()
        ctypes.CDLL(str(library)).QwenSetThreads(wanted_threads())
        self.portable = PortableKernels(config)
        self.constants = Tensor([config.rms_norm_eps, config.block_size], ms.float32)
        self.norm_op = _custom_op(library, "QwenRmsNorm", 3)
        # Of a linear x, settings and the weight, and then of scales, zeros, an order and a bias what there is.
        self.linear_op = _custom_ops(library, "QwenLinear", range(3, 8))
        self.layers_op = _custom_ops(library, "QwenLayers", (10, 11))
        self.layers_whole_op = _custom_op(library, "QwenLayersWhole", 8)

    def rms_norm(self, x, weight, epsilon):
        """See PortableKernels."""
        if self.training:
            return self.portable.rms_norm(x, weight, epsilon)
        return self.norm_op(x, self.constants, weight)

    def product(self, x, weights):
        """See PortableKernels."""
        if self.training:
            return self.portable_product(x, weights)
        inputs = (x, weights.own, weights.weight) + _present(weights)
        return self.linear_op[len(inputs)](*inputs)

    def bind(self, weights):
        """With what QwenLinear in csrc/ops.cc has to know of them besides their shapes."""
        if weights.kind != Kind.CELL:
            zeros = weights.is_packed and not weights.is_symmetric
            weights.own = Tensor([weights.kind, weights.group_size, zeros, weights.order is not None,
                                  weights.bias is not None], ms.float32)
        return weights

    def runs_at_once(self, layers):
        """Whether one operation can take all layers, of (attention, feed_forward) each: by the addresses of weights."""
        return all(weights.is_plain for halves in layers for _, *linears in halves for weights in linears)

    def layers(self, x, table, rotation, slot_mapping, block_tables, lengths, queries):
        """See the package."""
        sequences = (block_tables, lengths) if queries is None else (block_tables, lengths, queries)
        inputs = (x, self.constants, table, *rotation, slot_mapping, *sequences)
        return self.layers_op[len(inputs)](*inputs)

    def layers_whole(self, x, table, rotation, input_ids):
        """See the package."""
        return self.layers_whole_op(x, self.constants, table, *rotation, input_ids)

    def layer_table(self, layers):
        """See LayerTable."""
        return LayerTable(layers)

    def quantized_parameters(self, quantization, outputs, inputs):
        """As PortableKernels; ValueError for groups that its C++ can't read."""
        problem = _problem(quantization)
        if problem:
            raise ValueError(problem)
        return super().quantized_parameters(quantization, outputs, inputs)

    def prepare_quantized(self, quantization, weight, scales, zeros):
        """
        8 bits as signed numbers, less half of the range. Of 4 bits, 32 levels of a group at a time in 16 bytes: inputs
        0 .. 15 in the low halves, 16 .. 31 in the high ones, which unpacking to vectors takes the fewest steps for;
        what is left of a group stays two a byte.
        """
        half_range = 2 ** (quantization.bits - 1)
        if quantization.sym and (zeros != half_range).any():
            raise ValueError(f"quantization: sym: expected all zeros to be {half_range}, found "
                             f"{zeros[zeros != half_range][0]}: set it to false")
        if quantization.bits == 8:
            return weight ^ 0x80, scales, zeros
        half = weight.shape[1] if quantization.group_size == -1 else quantization.group_size // 2
        prepared = weight.copy()
        for first in range(0, weight.shape[1], half):
            last = first + min(half, weight.shape[1] - first) // 16 * 16
            levels = unpack(weight[:, first:last].reshape(len(weight), -1, 16), 4)
            prepared[:, first:last] = (levels[..., :16] | levels[..., 16:] << 4).reshape(len(weight), -1)
        return prepared, scales, zeros


def _problem(quantization):
    """Why these kernels can't multiply by weights that are quantized so, or None."""
    if quantization.bits == 4 and quantization.group_size > 1 and quantization.group_size % 2:
        return f"4-bit weights: expected an even group_size, found {quantization.group_size}"
    return None


def _present(weights):
    """What there is beside the weight, without zeros that are all the same."""
    present = ()
    if weights.is_packed:
        present += (weights.scales,)
        if not weights.is_symmetric:
            present += (weights.zeros,)
    if weights.order is not None:
        present += (weights.order,)
    if weights.bias is not None:
        present += (weights.bias,)
    return present


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
