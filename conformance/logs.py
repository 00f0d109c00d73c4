"""What a server writes into its log, and what it must not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pytest_vllm_triton import expect
from pytest_vllm_triton.launchers.base import ServerHandle, ServerLog
from pytest_vllm_triton.verdicts import untested


def log_of(server: ServerHandle) -> ServerLog:
    """The server's log; without one that can be read the check is untested."""
    if server.log is None:
        untested("the server's log cannot be read")
    return server.log


@contextlib.contextmanager
def nothing_in_the_log(server: ServerHandle, secret: str) -> Iterator[None]:
    """What is done in the block leaves no line in the server's log that tells the secret."""
    log = log_of(server)
    since = log.position()
    yield
    expect.lacks("log since the request", log.read(since), secret)
