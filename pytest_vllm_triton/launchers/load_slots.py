"""Slots for loading a model, where several workers of pytest-xdist share few cores.

A load keeps a core busy for half a minute. Triton gives up a model whose process gets no turn for a
second ("Stub process … is not healthy") and, in 24.10, then waits for ever for that process to end:
on two cores, workers that loaded at the same time lost a load in two of three runs of the suite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_CORES_PER_LOAD = 2
# Longer than any load may take. After that, loading at once is better than not at all.
_PATIENCE_SECONDS = 600.0


class LoadSlots:
    """Lets as many workers load at a time as there are cores for. Threads of one worker never wait
    for each other.

    Args:
        folder: of the lock files; the same for all workers.
        worker: number of this worker, from 0.
        workers: how many there are.
    """

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        loads = max(1, len(os.sched_getaffinity(0)) // _CORES_PER_LOAD)
        self._lock: FileLock | None = None
        if workers > loads:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / f"{worker % loads}.lock", thread_local=False)

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Wait for a slot, and keep it while the context lasts."""
        if self._lock is None:
            yield
            return
        with suppress(Timeout):
            self._lock.acquire(timeout=_PATIENCE_SECONDS)
        try:
            yield
        finally:
            self._lock.release()
