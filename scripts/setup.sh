#!/usr/bin/env bash
# Make .venv with what requirements.txt pins and this project's modules in it; WITH_TESTS=1: with what the tests need, too.
# Quick and silent when it is there. Sourced by the other scripts, which then use "$PYTHON".
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
WANTED="$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" "$ROOT/scripts/setup.sh" | sha256sum | cut -d' ' -f1) $ROOT"

if [ "$(cat "$ROOT/.venv/installed" 2>/dev/null)" != "$WANTED" ]; then
    for candidate in python3.11 python3.10 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null; then
            BASE="$candidate"
            break
        fi
    done
    [ -n "${BASE:-}" ] || { echo "setup: Python 3.10 or 3.11 is needed, found $(python3 --version 2>&1)" >&2; exit 1; }
    echo "setup: installing into .venv with $("$BASE" --version), about two minutes the first time" >&2
    "$BASE" -m venv "$ROOT/.venv"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps -e "$ROOT" >&2
    # Programs that know MindFormers alone find Qwen there: see qwen_mindspore/register.py.
    echo "import importlib.util; importlib.util.find_spec('qwen_mindspore') and __import__('qwen_mindspore.register')" \
        > "$("$PYTHON" -c 'import site; print(site.getsitepackages()[0])')/qwen_register.pth"
    echo "$WANTED" > "$ROOT/.venv/installed"
fi

if [ -n "${WITH_TESTS:-}" ]; then
    WANTED="$WANTED $(sha256sum < "$ROOT/requirements-test.txt")"
    if [ "$(cat "$ROOT/.venv/installed-tests" 2>/dev/null)" != "$WANTED" ]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements-test.txt" >&2
        echo "$WANTED" > "$ROOT/.venv/installed-tests"
    fi
fi
