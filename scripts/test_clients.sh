#!/usr/bin/env bash
# bash scripts/test_clients.sh [JUDGE ...]: other people's clients and suites against our server, on loopback; see
# docs/server.md. Each gets an environment of its own, .venv-clients/NAME; the first time this downloads packages.
set -euo pipefail
export WITH_TESTS=1
source "$(dirname "$0")/demo_model.sh"
export CHECKPOINT

CLIENTS="$ROOT/tests/clients"
for name in $("$PYTHON" "$CLIENTS/run.py" --environments "$@"); do
    wanted="$(sha256sum < "$CLIENTS/requirements-$name.txt") $ROOT"
    if [ "$(cat "$ROOT/.venv-clients/$name/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "test_clients: installing into .venv-clients/$name" >&2
        "$PYTHON" -m venv --clear "$ROOT/.venv-clients/$name"
        "$ROOT/.venv-clients/$name/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r "$CLIENTS/requirements-$name.txt" >&2
        echo "$wanted" > "$ROOT/.venv-clients/$name/installed"
    fi
done
exec "$PYTHON" "$CLIENTS/run.py" "$@"
