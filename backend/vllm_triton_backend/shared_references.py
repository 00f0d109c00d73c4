"""References across processes to the same metrics of Triton, so that the last one frees them.

Triton counts the users of a metric for each process by itself (`MetricFamily::Remove` in core's
metric_family.cc). Where two processes have a metric of one name and the same labels, it is freed
when the first of them lets go of it, and the next increment of the other crashes the server.
Two have it when a model has several instances, and while a model is loaded anew beside the old one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK_SECONDS = 5.0
_SOCKETS = Path("/proc/net/unix")


class SharedReference:
    """One process's reference to something that several have.

    Made of sockets in the abstract namespace, which end with their process, however that ends.

    Args:
        name: what is shared; see `parent_server.socket_name`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._own: socket.socket | None = None

    @contextlib.contextmanager
    def acquiring(self) -> Iterator[None]:
        """Hold a reference from now until `releasing`. During the block no other process takes or
        drops one."""
        with self._locked():
            self._own = _bound(f"{self._name}-{os.getpid()}")
            try:
                yield
            except BaseException:
                # Nothing was made, and the others must not wait for this process to free theirs.
                self._release()
                raise

    @contextlib.contextmanager
    def releasing(self) -> Iterator[bool]:
        """Drop the reference. Yields whether it was surely the last one, so that the block can free
        what was shared."""
        with self._locked() as locked:
            self._release()
            yield locked and not self._others()

    def _release(self) -> None:
        if self._own is not None:
            self._own.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock was free in time: who holds it may wait for a server that is stuck."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while (lock := _bound(f"{self._name}-lock")) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.close()

    def _others(self) -> list[str]:
        # The kernel writes the zero byte of abstract names as "@".
        name = f"@{self._name[1:]}-"
        words = _SOCKETS.read_text(encoding="utf-8", errors="replace").split()
        return [word for word in words if word.startswith(name) and not word.endswith("-lock")]


def _bound(name: str) -> socket.socket | None:
    """A socket of this name; None if another has it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(name)
    except OSError:
        made.close()
        return None
    return made
