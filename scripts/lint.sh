#!/usr/bin/env bash
# bash scripts/lint.sh [ruff arguments]: the rules of pyproject.toml, on every file; silent when all is well.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT"
exec "$PYTHON" -m ruff check --quiet "$@" .
