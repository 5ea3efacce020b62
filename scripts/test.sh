#!/usr/bin/env bash
# bash scripts/test.sh [pytest arguments]: every test.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest -q "$@"
