#!/usr/bin/env bash
# qwen-ms with CANN's environment, which a base image sets for login shells at most.
set -eo pipefail
for file in /usr/local/Ascend/{cann,ascend-toolkit,nnal/atb}/set_env.sh; do
    # shellcheck source=/dev/null
    if [ -r "$file" ]; then source "$file"; fi
done
drivers=/usr/local/Ascend/driver/lib64
export LD_LIBRARY_PATH="$drivers:$drivers/driver:$drivers/common:${LD_LIBRARY_PATH:-}"
exec qwen-ms "$@"
