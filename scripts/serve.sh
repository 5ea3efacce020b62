#!/usr/bin/env bash
# bash scripts/serve.sh [options of serve.py]: from nothing to a server of a trained model, and its page, on this machine's CPU.
set -euo pipefail
source "$(dirname "$0")/demo_model.sh"
exec "$PYTHON" "$ROOT/scripts/serve.py" --config "$ROOT/configs/predict_qwen_demo.yaml" \
    --load_checkpoint "$CHECKPOINT" "$@"
