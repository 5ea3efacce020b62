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

from qwen_kernels.portable import PortableKernels

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
    See `qwen_kernels` for the operations and their shapes; float32 only. What a layer consists of is fused; the
    kernels have no gradients, so in training the portable operations stand in.

    Raises:
        KernelsUnavailable: See `build_library`.
    """

    reads_whole_tables = False

    def __init__(self, config):
        super().__init__(config)
        library = build_library()

        def custom(name, inputs):
            info = CustomRegOp(f"{name}{inputs}").target("CPU")
            for i in range(inputs):
                info = info.input(i, f"x{i}")
            info = info.output(0, "y").dtype_format(*[DataType.None_None] * (inputs + 1)).get_op_info()
            return ops.Custom(f"{library}:{name}", out_dtype=ms.float32, func_type="aot", reg_info=info)

        self.portable = PortableKernels(config)
        self.epsilon = Tensor([config.rms_norm_eps], ms.float32)
        self.tokens_a_block = Tensor([config.block_size], ms.int32)
        self.norm_op = custom("QwenRmsNorm", 3)
        self.linear_op, self.biased_linear_op = custom("QwenLinear", 2), custom("QwenLinear", 3)
        self.attention_op = custom("QwenAttention", 21)
        self.attention_whole_op = custom("QwenAttentionWhole", 15)
        self.feed_forward_op = custom("QwenFeedForward", 6)

    def rms_norm(self, x, weight, epsilon):
        """See PortableKernels."""
        if self.training:
            return self.portable.rms_norm(x, weight, epsilon)
        return self.norm_op(x, weight, self.epsilon)

    def linear(self, x, weights):
        """See PortableKernels."""
        if self.training:
            return self.portable.linear(x, weights)
        weight, bias = weights
        return self.linear_op(x, weight) if bias is None else self.biased_linear_op(x, weight, bias)

    def attention(self, x, norm, wq, wk, wv, wo, rotation, caches, slot_mapping, layout, prefill):
        """See PortableKernels; one kernel serves prefill and decoding."""
        block_tables, lengths, queries = layout
        return self.attention_op(x, norm[0], self.epsilon, *wq, *wk, *wv, wo[0], *rotation, *caches, slot_mapping,
                                 block_tables, lengths, queries, self.tokens_a_block)

    def attention_whole(self, x, norm, wq, wk, wv, wo, rotation, input_ids):
        """See PortableKernels."""
        if self.training:
            return self.portable.attention_whole(x, norm, wq, wk, wv, wo, rotation, input_ids)
        return self.attention_whole_op(x, norm[0], self.epsilon, *wq, *wk, *wv, wo[0], *rotation, input_ids)

    def feed_forward(self, x, norm, w1, w2, w3):
        """See PortableKernels."""
        if self.training:
            return self.portable.feed_forward(x, norm, w1, w2, w3)
        return self.feed_forward_op(x, norm[0], self.epsilon, w1[0], w2[0], w3[0])

    def prefill_layout(self, block_tables, lengths, positions, rows):
        """(block_tables, lengths, how many of the packed tokens are each sequence's)."""
        return block_tables, lengths, lengths

    def decode_layout(self, block_tables, lengths):
        """The same; one token is each sequence's."""
        return block_tables, lengths, ops.ones_like(lengths)
