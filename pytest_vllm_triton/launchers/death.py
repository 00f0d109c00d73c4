"""Servers that end though nobody told them to."""

from __future__ import annotations

import signal
import time

import httpx

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.stalled_stub import LOCK_DESTROYED
from pytest_vllm_triton.plain_http import plain_client

TAIL_LINES = 30
POLL_SECONDS = 0.1
#: How long a server may take to say how it is.
HEALTH_SECONDS = 5.0
#: How long a server that answers nobody may need until it is known for dead.
DYING_SECONDS = 20.0


def await_death(handle: ServerHandle) -> None:
    """Wait for the end of a server of ours that is dying, else return at once.

    It may still be writing its core, or Docker may be slow to tell.
    """
    if handle.owned and handle.exit_code() is None and not _lives(handle):
        deadline = time.monotonic() + DYING_SECONDS
        while handle.exit_code() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def crashed(handle: ServerHandle) -> bool:
    """Whether its main process has ended as it does of the bugs that Triton 24.10 is known for:
    with SIGSEGV, or aborted by a lock that was gone (see `stalled_stub`)."""
    if _ended_with(handle, signal.SIGABRT):
        return LOCK_DESTROYED in last_lines(handle)
    return _ended_with(handle, signal.SIGSEGV)


def _ended_with(handle: ServerHandle, number: int) -> bool:
    """As a parent or as a shell tells it."""
    return handle.exit_code() in (-number, 128 + number)


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


def _lives(handle: ServerHandle) -> bool:
    """Whether it answers, or may do so yet.

    That it takes a connection does not show it: a process that ends closes one socket after the
    other, and the kernel takes connections until it comes to that one.
    """
    url = f"{handle.endpoints.http}/v2/health/live"
    try:
        with plain_client(HEALTH_SECONDS) as client:
            client.get(url)
    except httpx.TimeoutException:
        return True
    except httpx.TransportError:
        return False
    return True
