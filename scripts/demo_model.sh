#!/usr/bin/env bash
# Set-up, and the demo model in "$CHECKPOINT". Sourced by demo.sh, chat.sh and serve.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/qwen-mindspore/models"
CHECKPOINT="$CACHE/smollm2-135m-qwen-ms"
export LOG_MF_PATH="${LOG_MF_PATH:-$CACHE/output/log}"  # MindFormers' logs; not in the user's directory

# A conversion that was killed leaves no index: it is made again.
if [ ! -f "$CHECKPOINT/model.safetensors.index.json" ]; then
    HF="$("$PYTHON" "$ROOT/scripts/make_demo_model.py")"
    "$PYTHON" "$ROOT/convert/convert_weight.py" --torch_ckpt_dir "$HF" --mindspore_ckpt_path "$CHECKPOINT" --overwrite >&2
fi
