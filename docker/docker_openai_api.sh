#!/usr/bin/env bash
# bash docker/docker_openai_api.sh -c /path/to/Qwen-Chat: a server with OpenAI's interface, in a container in the background.
# shellcheck disable=SC2034
PORT=8000
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
serve "OpenAI API" /v1
