#!/usr/bin/env bash
# bash scripts/test_kernels.sh [pytest arguments]: the tests of the kernels, and what the model computes with them, once
# with the C++ built for AVX2 and once for x86-64 without any AVX. scripts/test.sh builds it for the CPU at hand.
set -euo pipefail
if [ "$(uname -m)" != x86_64 ]; then
    echo "test_kernels: x86-64 alone has these builds, found $(uname -m): scripts/test.sh tests the kernels here" >&2
    exit 0
fi
cd "$(dirname "$0")/.."
model=tests/model/test_model.py
for march in haswell x86-64; do
    echo "test_kernels: -march=$march" >&2
    QWEN_KERNEL_MARCH="$march" bash scripts/test.sh tests/kernels/test_kernels.py tests/kernels/test_quantized.py \
        "$model::test_greedy_continuation_and_its_logits_step_by_step" "$model::test_beyond_the_training_length" \
        "$model::test_an_8_bit_cache_is_the_references" "$@"
done
