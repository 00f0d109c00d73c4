"""Waits to be told to end, then removes what containers a run has left.

``python -m pytest_vllm_triton.launchers.guard RUN``, under the supervisor that servers on this host
have too: that one tells it when pytest has ended or died, in whatever way.
"""

from __future__ import annotations

import signal
import sys


def main(run: str) -> int:
    # Blocked, not handled: a signal that comes early is kept until it is waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from pytest_vllm_triton.launchers import docker_engine, leftovers

    client = docker_engine.connect()  # at once, so that the removal does not wait for imports
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    leftovers.remove_run(client, run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
