#!/usr/bin/env bash
# bash scripts/soak_server.sh: floods of clients, clients that hang up, ten thousand requests; see tests/server/soak.py.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT/tests"
PYTHONPATH="$ROOT/tests" exec "$PYTHON" server/soak.py
