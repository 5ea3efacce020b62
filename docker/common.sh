#!/usr/bin/env bash
# What the scripts beside this one have in common; they source it. PORT is their default, empty where there is none.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
INSIDE=/data/shared/Qwen/Qwen-Chat  # the checkpoint's place in a container, as in the original's images
read -ra DOCKER <<< "${DOCKER:-docker}"  # DOCKER="sudo docker", DOCKER=podman

IMAGE_NAME="" CHECKPOINT="" CONTAINER_NAME=qwen PORT="${PORT:-}" ADDRESS=127.0.0.1 REST=()

# Of a script that starts a server; another has its own.
usage() {
    cat <<EOF
Usage: bash docker/$(basename "$0") [-i IMAGE_NAME] -c /path/to/Qwen-Chat [-n CONTAINER_NAME] [--port PORT]
           [--address ADDRESS] [-- options of qwen-ms serve]
EOF
}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# read_options ARGUMENTS: into the variables above; what follows -- into REST.
read_options() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --) shift; REST=("$@"); break ;;
            -i | --image-name | -c | --checkpoint | -n | --container-name | --port | --address)
                [ $# -gt 1 ] || fail "$1: expected a value behind it" ;;
        esac
        case "$1" in
            -i | --image-name) IMAGE_NAME=$2 ;;
            -c | --checkpoint) CHECKPOINT=$2 ;;
            -n | --container-name) CONTAINER_NAME=$2 ;;
            --port) [ -n "$PORT" ] || { usage >&2; fail "unknown argument $1"; }; PORT=$2 ;;
            --address) [ -n "$PORT" ] || { usage >&2; fail "unknown argument $1"; }; ADDRESS=$2 ;;
            *) usage >&2; fail "unknown argument $1" ;;
        esac
        shift 2
    done
    [ -n "$CHECKPOINT" ] || { usage >&2; fail "-c: the folder of a checkpoint is needed"; }
    [ -d "$CHECKPOINT" ] || fail "-c $CHECKPOINT: no such folder"
    [ -e "$CHECKPOINT/config.json" ] || fail "-c $CHECKPOINT: config.json is not in it: expected a model's folder"
    CHECKPOINT="$(cd "$CHECKPOINT" && pwd -P)"
    case "$CHECKPOINT" in *[,\"]*) fail "-c $CHECKPOINT: docker takes no folder with a comma or quote in its name" ;; esac
    if [ -n "$PORT" ]; then
        [[ "$PORT" =~ ^[1-9][0-9]{0,4}$ && "$PORT" -le 65535 ]] || fail "--port $PORT: expected 1 to 65535"
    fi
}

has_npu() {
    [ -e "${DEVICES:-/dev}/davinci_manager" ]
}

# Take the image that was named, or make this project's own if it isn't there.
provide_image() {
    if [ -n "$IMAGE_NAME" ]; then
        "${DOCKER[@]}" image inspect "$IMAGE_NAME" > /dev/null 2>&1 || "${DOCKER[@]}" pull "$IMAGE_NAME" ||
            fail "image $IMAGE_NAME: neither here nor to be pulled"
        return
    fi
    if has_npu; then
        IMAGE_NAME=qwen-mindspore-ascend
        "${DOCKER[@]}" image inspect "$IMAGE_NAME" > /dev/null 2>&1 ||
            fail "image $IMAGE_NAME: build it on your CANN image, see docs/docker.md"
        return
    fi
    IMAGE_NAME=qwen-mindspore
    "${DOCKER[@]}" image inspect "$IMAGE_NAME" > /dev/null 2>&1 ||
        "${DOCKER[@]}" build --tag "$IMAGE_NAME" --file "$ROOT/docker/Dockerfile" "$ROOT" ||
        fail "image $IMAGE_NAME: it could not be built"
}

# run_image OPTIONS OF DOCKER RUN -- ARGUMENTS OF QWEN-MS: no more rights than it takes to answer.
run_image() {
    local options=(--name "$CONTAINER_NAME" --init --read-only --tmpfs /tmp --cap-drop ALL
        --security-opt no-new-privileges --volume qwen-cache:/cache
        --mount "type=bind,source=$CHECKPOINT,target=$INSIDE,readonly")
    local name
    for name in QWEN_API_KEY QWEN_NUM_THREADS QWEN_KERNELS QWEN_KERNEL_MARCH; do
        [ -z "${!name:-}" ] || options+=(--env "$name")
    done
    if has_npu; then
        local devices="${DEVICES:-/dev}" device
        for device in "$devices/davinci${NPU:-0}" "$devices"/{davinci_manager,devmm_svm,hisi_hdc}; do
            options+=(--device "$device")
        done
        options+=(--group-add "$(stat --format %g "$devices/davinci_manager")"
            --volume /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro --shm-size 1g)
    fi
    while [ "$1" != "--" ]; do options+=("$1"); shift; done
    shift
    "${DOCKER[@]}" run "${options[@]}" "$IMAGE_NAME" "$@" ${REST[@]+"${REST[@]}"}
}

# serve WHAT URL_PATH: a server in the background, and how it is reached.
serve() {
    provide_image
    run_image --detach --restart unless-stopped --stop-timeout 40 --publish "$ADDRESS:$PORT:8000" -- \
        serve --host 0.0.0.0 --port 8000 --model "$INSIDE" > /dev/null || fail "container $CONTAINER_NAME: not started"
    cat <<EOF
The $1 starts at http://localhost:$PORT$2; large models take minutes to load.
Run \`docker logs $CONTAINER_NAME\` to see how far it is.
Run \`docker rm -f $CONTAINER_NAME\` to stop and remove it.
EOF
}
