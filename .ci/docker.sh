# Sourced by .ci/run: Docker for the container launcher, on a machine that may have none.
#
# start_docker   makes Docker answer; returns 1, after a loud notice, where it cannot run at all,
#                and ends CI where only the user can help (no root, packages that do not install)
# stop_docker    ends the daemon that start_docker has started, and no other

DOCKERD_LOG=${TMPDIR:-/tmp}/ci-dockerd.log
dockerd_pid=

start_docker() {
    # Called in a condition, where `set -e` does not act: each command that must not fail says so.
    if docker info >/dev/null 2>&1 && { has_image || command -v debootstrap >/dev/null; }; then
        return 0
    fi
    if [ "$(id -u)" != 0 ]; then
        fail "Docker does not answer (or debootstrap is missing): only root can install and start it"
    fi
    if ! command -v docker >/dev/null || ! command -v dockerd >/dev/null ||
        ! command -v debootstrap >/dev/null; then
        echo "installing Docker and debootstrap from Debian's packages"
        apt-get update -qq || fail "apt-get update"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
            docker.io debootstrap iptables >/dev/null || fail "apt-get install docker.io"
    fi
    if docker info >/dev/null 2>&1; then
        return 0
    fi
    # In a session of its own, so that Ctrl-C does not take it from under the containers.
    setsid dockerd >"$DOCKERD_LOG" 2>&1 </dev/null &
    dockerd_pid=$!
    local second
    for second in $(seq 60); do
        if docker info >/dev/null 2>&1; then
            return 0
        fi
        if ! kill -0 "$dockerd_pid" 2>/dev/null; then
            dockerd_pid=
            notice "dockerd cannot run on this kernel, so NOTHING of the container launcher is tested."
            tail -n 20 "$DOCKERD_LOG" >&2
            return 1
        fi
        sleep 1
    done
    tail -n 20 "$DOCKERD_LOG" >&2
    fail "dockerd runs but does not answer after $second s"
}

# Whether the CPU image, of whatever age, or its base is there: no debootstrap is needed then.
has_image() {
    [ -n "$(docker images --quiet 'pytest-vllm-triton-*')" ]
}

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

stop_docker() {
    if [ -n "$dockerd_pid" ]; then
        kill "$dockerd_pid" 2>/dev/null || true
        wait "$dockerd_pid" 2>/dev/null || true
        dockerd_pid=
    fi
}

notice() {
    local line
    line=$(printf '%*s' "${#1}" '' | tr ' ' '!')
    printf '\n%s\n%s\n%s\n\n' "$line" "$1" "$line" >&2
}
