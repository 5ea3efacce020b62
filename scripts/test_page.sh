#!/usr/bin/env bash
# bash scripts/test_page.sh [pytest arguments]: the server's page in Chromium. Installs playwright into .venv and, as
# root on Debian or Ubuntu, the browser, where they are missing.
set -euo pipefail
WITH_TESTS=1 source "$(dirname "$0")/setup.sh"
cd "$ROOT"

WANTED="$(sha256sum < requirements-page.txt) $WANTED"
if [ "$(cat .venv/installed-page 2>/dev/null)" != "$WANTED" ]; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-page.txt >&2
    echo "$WANTED" > .venv/installed-page
fi

if ! command -v chromium chromium-browser google-chrome > /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "test_page: Chromium is needed: install your system's package chromium" >&2
        exit 1
    fi
    echo "test_page: installing chromium" >&2
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } > /dev/null
fi
# The page is asked for on this machine, not through a proxy.
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
exec "$PYTHON" -m pytest -q -m browser tests/server/page "$@"
