#!/usr/bin/env bash
# bash docker/docker_cli_demo.sh -c /path/to/Qwen-Chat: a chat in the terminal, in a container that goes with it.
# shellcheck disable=SC2034
PORT=""
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'EOF'
Usage: bash docker/docker_cli_demo.sh [-i IMAGE_NAME] -c /path/to/Qwen-Chat [-n CONTAINER_NAME]
           [-- options of qwen-ms chat]
EOF
}

read_options "$@"
provide_image
terminal=(--interactive)
[ ! -t 0 ] || terminal+=(--tty)
run_image --rm --no-healthcheck "${terminal[@]}" -- chat --model "$INSIDE"
