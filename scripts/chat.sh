#!/usr/bin/env bash
# bash scripts/chat.sh [options of run_qwen_7b_chat.py]: from nothing to a chat with a trained model, on this machine's CPU.
set -euo pipefail
source "$(dirname "$0")/demo_model.sh"
exec "$PYTHON" "$ROOT/research/qwen/run_qwen_7b_chat.py" --config "$ROOT/configs/predict_qwen_demo.yaml" \
    --load_checkpoint "$CHECKPOINT" "$@"
