#!/usr/bin/env bash
# bash scripts/demo.sh ["your question"]: from nothing to an answer by a trained chat model, on this machine's CPU.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/qwen-mindspore/models"
CHECKPOINT="$CACHE/smollm2-135m-qwen-ms"

if [ ! -d "$CHECKPOINT" ]; then
    HF="$("$PYTHON" "$ROOT/scripts/make_demo_model.py")"
    "$PYTHON" "$ROOT/convert/convert_weight.py" --torch_ckpt_dir "$HF" --mindspore_ckpt_path "$CHECKPOINT" >&2
fi
cd "$CACHE"  # MindFormers writes its logs below the working directory
exec "$PYTHON" "$ROOT/research/qwen/run_qwen_7b.py" --config "$ROOT/configs/predict_qwen_demo.yaml" \
    --load_checkpoint "$CHECKPOINT" --predict_data "${1:-What is the capital of France?}"
