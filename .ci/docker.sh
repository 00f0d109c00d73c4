# Sourced by .ci/run: Docker for the container launcher, on a machine that may have none.
#
# start_docker   makes Docker answer; returns 1, after a loud notice, where it cannot run at all
# stop_docker    ends the daemon that start_docker has started, and no other

DOCKERD_LOG=${TMPDIR:-/tmp}/ci-dockerd.log
dockerd_pid=

start_docker() {
    # Before the question whether Docker answers: the image's base is made by debootstrap.
    if ! command -v docker >/dev/null || ! command -v debootstrap >/dev/null ||
        { ! docker info >/dev/null 2>&1 && ! command -v dockerd >/dev/null; }; then
        echo "installing Docker and debootstrap from Debian's packages"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
            docker.io debootstrap iptables >/dev/null
    fi
    if docker info >/dev/null 2>&1; then
        return 0
    fi
    # Not in our process group, so that Ctrl-C does not take it from under the containers.
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
    echo "dockerd runs but does not answer after $second s:" >&2
    tail -n 20 "$DOCKERD_LOG" >&2
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
