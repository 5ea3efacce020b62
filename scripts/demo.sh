#!/usr/bin/env bash
# bash scripts/demo.sh ["your question"]: from nothing to an answer by a trained chat model, on this machine's CPU.
set -euo pipefail
source "$(dirname "$0")/demo_model.sh"
cd "$CACHE"  # MindFormers' Trainer writes below the working directory
exec "$PYTHON" "$ROOT/research/qwen/run_qwen_7b.py" --config "$ROOT/configs/predict_qwen_demo.yaml" \
    --load_checkpoint "$CHECKPOINT" --predict_data "${1:-What is the capital of France?}"
