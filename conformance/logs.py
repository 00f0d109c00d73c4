"""What a server writes into its log, and what it must not."""

from __future__ import annotations

from collections.abc import Callable

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generation
from pytest_vllm_triton.launchers.base import ServerHandle, ServerLog
from pytest_vllm_triton.verdicts import untested


def log_of(server: ServerHandle) -> ServerLog:
    """The server's log; without one that can be read the check is untested."""
    if server.log is None:
        untested("the server's log cannot be read")
    return server.log


def expect_not_logged(server: ServerHandle, secret: str, ask: Callable[[], Generation]) -> None:
    """A request leaves no line in the server's log that tells the secret."""
    log = log_of(server)
    since = log.position()
    error = ask().error
    if error is not None:
        untested(f"the request is not answered: {error}")
    expect.lacks("log since the request", log.read(since), secret)
