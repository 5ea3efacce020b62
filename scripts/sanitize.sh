#!/usr/bin/env bash
# bash scripts/sanitize.sh [address|thread]: the CPU kernels and their pool of threads under AddressSanitizer and
# UndefinedBehaviorSanitizer, for each width of vectors, and under ThreadSanitizer; without an argument both. Needs g++,
# or the compiler that CXX names, and nothing else of the project's set-up. Silent on standard output; exit code 0: nothing
# was found.
set -euo pipefail
cd "$(dirname "$0")/.."
kernels=research/qwen/qwen_mindspore/kernels
compiler="${CXX:-g++}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

fail() { echo "sanitize: $1" >&2; exit 1; }

command -v "$compiler" > /dev/null || fail "no C++ compiler $compiler: install g++, or name another one in CXX"
case "${1:-}" in
    "") wanted="address thread" ;;
    address|thread) wanted="$1" ;;
    *) fail "expected address, thread or nothing, found '$1'" ;;
esac
# The numbers of Kind, as cpu.py hands them to the compiler.
kinds="$(sed -n 's/^    \([A-Z0-9]*\) = \([0-9]*\)$/-DQWEN_KIND_\1=\2/p' $kernels/weights.py)"

# check SANITIZER MARCH THREADS...: builds the program for that CPU and runs it with each number of threads.
check() {
    local sanitizer="$1" march="$2" program="$folder/$1-$2" flags
    shift 2
    flags="-fsanitize=$sanitizer"
    [ "$sanitizer" != address ] || flags="$flags,undefined -fno-sanitize-recover=all -DQWEN_POISON_BUFFERS"
    echo "int main() {}" | "$compiler" -x c++ $flags - -o "$program" 2> /dev/null \
        || fail "$compiler has no $sanitizer sanitizer: install its library, or name another compiler in CXX"
    "$compiler" -std=c++17 -O1 -g -fno-omit-frame-pointer -march="$march" -Wno-psabi -pthread $flags $kinds -I$kernels/csrc \
        tests/kernels/sanitizers/sanitize.cc $kernels/csrc/*.cc -o "$program"
    for threads in "$@"; do
        echo "sanitize: $sanitizer, -march=$march, $threads threads" >&2
        UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 "$program" "$threads" || fail "$sanitizer: see above"
    done
}

for sanitizer in $wanted; do
    check "$sanitizer" native 1 2 3 5
    if [ "$sanitizer" = address ] && [ "$(uname -m)" = x86_64 ]; then
        ! grep -qw avx2 /proc/cpuinfo || check address haswell 1 3
        check address x86-64 1 3
    fi
done
