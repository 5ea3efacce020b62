#!/usr/bin/env bash
# bash docker/docker_openai_api.sh -c /path/to/Qwen-Chat: a server with OpenAI's interface, in a container in the background.
# shellcheck disable=SC2034
PORT=8000
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'EOF'
Usage: bash docker/docker_openai_api.sh [-i IMAGE_NAME] -c /path/to/Qwen-Chat [-n CONTAINER_NAME] [--port PORT]
           [--address ADDRESS] [-- options of qwen-ms serve]
EOF
}

read_options "$@"
serve "OpenAI API" /v1
