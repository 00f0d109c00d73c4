"""GPUs that workers of pytest-xdist have for themselves.

A lease is a lock on a file, which the system gives back whatever becomes of its holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import Gpu


def share_of(gpus: Sequence[Gpu], workers: int) -> int:
    """How many GPUs each worker may have.

    Raises:
        UserError: there are fewer GPUs than workers.
    """
    share = len(gpus) // workers
    if share == 0:
        raise _too_few(gpus, workers)
    return share


def _too_few(gpus: Sequence[Gpu], workers: int, used: int = 0) -> UserError:
    held = f", of which others use {used}" if used else ""
    return UserError(
        f"Each of pytest-xdist's workers needs GPUs of its own, and there are {workers} workers "
        f"for {len(gpus)} GPU(s){held}. Start fewer workers (-n), or let them share GPUs, which "
        "suits small models: --triton-xdist-gpus share."
    )


class GpuLeases:
    """The leases of one worker.

    Args:
        folder: of the lock files; the same for all who must not share a GPU.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: list[FileLock] = []

    def acquire(self, gpus: Sequence[Gpu], workers: int) -> tuple[Gpu, ...]:
        """This worker's equal share of the GPUs, in their order.

        Args:
            workers: how many there are.

        Raises:
            UserError: there are fewer GPUs than workers, or others hold too many of them.
        """
        share = share_of(gpus, workers)
        self._folder.mkdir(parents=True, exist_ok=True)
        taken: list[Gpu] = []
        for gpu in gpus:
            if len(taken) < share and self._lock(gpu):
                taken.append(gpu)
        if len(taken) < share:
            self.release()
            raise _too_few(gpus, workers, used=len(gpus) - len(taken))
        return tuple(taken)

    def _lock(self, gpu: Gpu) -> bool:
        lock = FileLock(self._folder / f"{gpu.uuid}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._locks.append(lock)
        return True

    def release(self) -> None:
        """Give all back; harmless when called again."""
        for lock in self._locks:
            lock.release()
        self._locks.clear()
