#!/usr/bin/env bash
# bash scripts/fuzz.sh TARGET|all [--seconds N]: fuzz what reads a file of somebody else's, see tests/fuzz/fuzz_readers.py.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT"
exec "$PYTHON" tests/fuzz/fuzz_readers.py "$@"
