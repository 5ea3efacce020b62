#!/usr/bin/env bash
# bash docker/docker_web_demo.sh -c /path/to/Qwen-Chat: a server with a page to talk to, in a container in the background.
# shellcheck disable=SC2034
PORT=8901
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "$@"
serve "web demo" /
