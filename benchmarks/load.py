"""Drives the client processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.digest import Figures
from benchmarks.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
#: Between the order to begin and the beginning, so that all clients begin together.
LEAD_SECONDS = 0.02


class LoadFailed(Exception):
    """A client process died."""


@dataclass(frozen=True)
class Target:
    """Where a client sends its requests, and how (`client.WIRES`)."""

    wire: str
    host: str
    port: int
    model: str


class ClientPool:
    """Client processes that wait for jobs; use it as a context manager."""

    def __init__(self, count: int, workload: Workload) -> None:
        self._workload = workload
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for _ in range(count)
        ]

    def __enter__(self) -> ClientPool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def pids(self) -> list[int]:
        """Its processes."""
        return [process.pid for process in self._processes]

    def run(self, target: Target, streams: int, seconds: float) -> Figures:
        """Keep so many streams busy for so long; the last answers may end a little later."""
        count = len(self._processes)
        shares = [streams // count + (index < streams % count) for index in range(count)]
        used = [(index, share) for index, share in enumerate(shares) if share]
        for index, share in used:
            job = {
                **vars(target),
                "workload": self._workload.to_json(),
                "first": index,
                "step": count,
                "streams": share,
                "seconds": seconds,
            }
            self._say(index, job)
        for index, _ in used:
            self._hear(index)
        start = time.monotonic() + LEAD_SECONDS
        for index, _ in used:
            self._say(index, {"start": start})
        return Figures.merged(Figures.from_json(self._hear(index)) for index, _ in used)

    def _say(self, index: int, value: dict[str, Any]) -> None:
        stream = self._processes[index].stdin
        assert stream is not None
        stream.write(json.dumps(value) + "\n")
        stream.flush()

    def _hear(self, index: int) -> dict[str, Any]:
        stream = self._processes[index].stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise LoadFailed(f"client process {index} ended with {self._processes[index].wait()}")
        value: dict[str, Any] = json.loads(line)
        return value


def client_count(cores: int, asked: int | None, levels: Sequence[int]) -> int:
    """How many client processes: as asked, else one per two cores, eight at most."""
    return asked or max(1, min(8, cores // 2, max(levels)))
