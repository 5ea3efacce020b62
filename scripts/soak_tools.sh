#!/usr/bin/env bash
# bash scripts/soak_tools.sh [--runs 200] [--seed 0] [--max_tokens 512]: the demo model, drawn at random, calls random
# tools, and each call must fit its schema; see tests/server/soak_tools.py.
set -euo pipefail
export WITH_TESTS=1
source "$(dirname "$0")/demo_model.sh"
cd "$ROOT/tests"
PYTHONPATH="$ROOT/tests" exec "$PYTHON" server/soak_tools.py --load_checkpoint "$CHECKPOINT" "$@"
