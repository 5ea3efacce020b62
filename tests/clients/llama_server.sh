#!/usr/bin/env bash
# Stands in for llama-server in its own tests: see llama_shim.py.
exec env PYTHONPATH="$PROJECT_PATH" "$QWEN_PYTHON" "$(dirname "$0")/llama_shim.py" "$@"
