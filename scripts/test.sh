#!/usr/bin/env bash
# bash scripts/test.sh [pytest arguments]: every test; those that start processes of their own, marked `process`, last.
# bash scripts/test.sh -m "not process": the quick part.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest -q "$@"
