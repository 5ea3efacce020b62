"""Measure what this machine can do, as benchmark.py compares by: prints JSON.

bandwidth: bytes/s at which all cores together read memory, each the dot product of its
share of 1 GiB with itself.
matmul: float32 operations/s of all cores together, each multiplying matrices of its own.

Both are the best of several: what else runs on a machine only makes it slower.
"""
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from qwen_mindspore.common.cpus import usable_cpus

THREADS = usable_cpus()
BUFFER_BYTES = 2**30
MATRIX = 1024
ROUNDS = 7


def best_rate(work, task, inputs):
    """The most of `work` (of all threads together) per second, when each thread does `task` on its input."""
    rates = []
    with ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(task, inputs))
            rates.append(work / (time.perf_counter() - start))
    return max(rates)


def main():
    # One thread each: read when numpy is imported.
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_NUM_THREADS="1")
    import numpy as np

    # Unlike `@`, np.dot lets other threads run meanwhile, for vectors too.
    square = [np.ones((MATRIX, MATRIX), np.float32) for _ in range(THREADS)]
    matmul = best_rate(2 * MATRIX**3 * THREADS, lambda matrix: np.dot(matrix, matrix), square)
    buffers = [np.ones(BUFFER_BYTES // 4 // THREADS, np.float32) for _ in range(THREADS)]
    bandwidth = best_rate(BUFFER_BYTES, lambda buffer: np.dot(buffer, buffer), buffers)
    print(json.dumps({"bandwidth": bandwidth, "matmul": matmul}))


if __name__ == "__main__":
    main()
