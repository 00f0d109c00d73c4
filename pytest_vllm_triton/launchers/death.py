"""Servers that end though nobody told them to."""

from __future__ import annotations

import signal
import socket
import time
from urllib.parse import urlsplit

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ServerHandle

TAIL_LINES = 30
POLL_SECONDS = 0.1
#: How long a server that takes no connections may need until it is known for dead.
DYING_SECONDS = 20.0


def await_death(handle: ServerHandle) -> None:
    """Wait for the end of a server of ours that takes no connections any more, else return at once.

    It may still be writing its core, or Docker may be slow to tell.
    """
    if handle.owned and not _takes_connections(handle):
        deadline = time.monotonic() + DYING_SECONDS
        while handle.exit_code() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def segfaulted(handle: ServerHandle) -> bool:
    """Whether its main process has ended with SIGSEGV, as a parent or as a shell tells it."""
    return handle.exit_code() in (-signal.SIGSEGV, 128 + signal.SIGSEGV)


def ended_by_itself(handle: ServerHandle, when: str) -> ServerFailed:
    """What to say of a server that has ended though nobody told it to.

    Args:
        when: the end of the sentence, e.g. "before it was ready".
    """
    code = handle.exit_code()
    if code is not None and code < 0:
        how = f"was killed by signal {-code}"
    else:
        how = "ended with an unknown status" if code is None else f"ended with exit code {code}"
    tail = last_lines(handle)
    last_word = [line for line in tail.splitlines() if line.startswith("error: ")]
    if last_word:
        how += f" ({last_word[-1]})"
    return ServerFailed(f"The server {how} {when}.", tail)


def last_lines(handle: ServerHandle) -> str:
    """The end of its log, "" if it has none that can be read."""
    return handle.log.tail(TAIL_LINES) if handle.log else ""


def _takes_connections(handle: ServerHandle) -> bool:
    address = urlsplit(handle.endpoints.http)
    try:
        with socket.create_connection((address.hostname, address.port or 80), timeout=5.0):
            return True
    except OSError:
        return False
