"""Copies a container's log into a file while it grows, and notes how the container ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_vllm_triton.launchers.redact import Redactor

EXIT_SECONDS = 30
#: A shell's way to say that signal N ended a program, which is Docker's too.
SIGNALLED = 128


class LogFollower(threading.Thread):
    """Follows one container from its start to its end.

    Args:
        connect: makes a Docker client; the thread needs one of its own.
        container_id: what to follow.
        path: the file to write to.
        redactor: takes secrets out of each line.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        container_id: str,
        path: Path,
        redactor: Redactor,
    ) -> None:
        super().__init__(name=f"log of {container_id[:12]}", daemon=True)
        self._connect = connect
        self._container_id = container_id
        self._path = path
        self._redactor = redactor
        self._ended = threading.Event()
        self._exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the container has ended, and its log is complete."""
        return self._ended.is_set()

    @property
    def exit_code(self) -> int | None:
        """-N for signal N; None as long as it runs, and where it could not be learned."""
        return self._exit_code

    def wait(self, seconds: float) -> bool:
        """Wait for the end; whether it has come."""
        return self._ended.wait(seconds)

    def run(self) -> None:
        # Whatever goes wrong here (the daemon is gone, the container was removed): the server
        # cannot be used any more, and must not be waited for.
        with contextlib.suppress(Exception):
            client = self._connect()
            try:
                container = client.containers.get(self._container_id)
                self._copy(container)
                status = container.wait(timeout=EXIT_SECONDS)["StatusCode"]
                self._exit_code = exit_code(int(status))
            finally:
                client.close()
        self._ended.set()

    def _copy(self, container: Any) -> None:
        partial = b""
        with self._path.open("ab", buffering=0) as file:
            for chunk in container.logs(stream=True, follow=True):
                *lines, partial = (partial + chunk).split(b"\n")
                if lines:
                    text = b"".join(line + b"\n" for line in lines)
                    file.write(self._redactor.line(text))
            file.write(self._redactor.line(partial))


def exit_code(status: int) -> int:
    """Docker's exit status as that of a process: -N for signal N."""
    number = status - SIGNALLED
    return -number if number in set(signal.Signals) else status
