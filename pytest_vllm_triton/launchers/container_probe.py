"""A container's processes and shared memory, seen from inside.

By `docker exec`, which needs no rights on this host: the user may be nobody special, and the daemon
may run in a virtual machine. Process ids are those within the container.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_vllm_triton.supervision.standalone.container_look import PROGRAM

#: How old the snapshot may be that single processes are looked up in.
FRESH_SECONDS = 0.1
MAIN_PROCESS = 1

_KILL = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"

_STATES = {"R": "running", "S": "sleeping", "D": "disk-sleep", "T": "stopped", "Z": "zombie"}


@dataclass(frozen=True)
class ProcessFacts:
    """What was seen of a process.

    Attributes:
        state: one letter, as in /proc.
        started: clock ticks after the host's boot.
        words: its command line.
        regions: names of the shared-memory regions that it maps.
        rss: bytes.
        cpu: seconds of processor time, of its own and of the kernel's for it.
    """

    pid: int
    parent: int
    state: str
    started: int
    name: str
    words: tuple[str, ...]
    regions: frozenset[str]
    files: int
    threads: int
    rss: int
    cpu: CpuTimes


class MemoryInfo(NamedTuple):
    """Bytes, as psutil calls them."""

    rss: int


class CpuTimes(NamedTuple):
    """Seconds, as psutil calls them."""

    user: float
    system: float


@dataclass(frozen=True)
class ContainerSnapshot:
    """What was seen of a container: nothing, once it has ended.

    Attributes:
        processes: of its main process and that one's descendants, by process id.
        shm: names in its /dev/shm.
    """

    processes: Mapping[int, ProcessFacts] = field(default_factory=dict)
    shm: frozenset[str] = frozenset()

    @classmethod
    def of(cls, seen: Mapping[str, Any]) -> ContainerSnapshot:
        every = {
            p["pid"]: ProcessFacts(
                p["pid"],
                p["parent"],
                p["state"],
                p["started"],
                p["name"],
                tuple(p["words"]),
                frozenset(p["regions"]),
                p["files"],
                p["threads"],
                p["rss"],
                CpuTimes(*p["cpu"]),
            )
            for p in seen["processes"]
        }
        # What `docker exec` started, the looker itself first, has a parent outside.
        tree = {MAIN_PROCESS, *_descendants(every, MAIN_PROCESS)}
        return cls(
            {pid: facts for pid, facts in every.items() if pid in tree}, frozenset(seen["shm"])
        )


def _descendants(processes: Mapping[int, ProcessFacts], root: int) -> list[int]:
    children = [pid for pid, facts in processes.items() if facts.parent == root]
    return [pid for child in children for pid in (child, *_descendants(processes, child))]


class ContainerProbe:
    """Looks into one container.

    Args:
        container: the Docker SDK's object.
    """

    def __init__(self, container: Any) -> None:
        self.container = container
        self._lock = threading.Lock()
        self._last = ContainerSnapshot()
        self._last_seen = float("-inf")

    def look(self, max_age: float = 0.0) -> ContainerSnapshot:
        """What is there now, or was at most ``max_age`` seconds ago."""
        with self._lock:
            if time.monotonic() - self._last_seen > max_age:
                answer = self._run(PROGRAM)
                self._last = (
                    ContainerSnapshot()
                    if answer is None
                    else ContainerSnapshot.of(json.loads(answer))
                )
                self._last_seen = time.monotonic()
            return self._last

    def processes(self) -> list[ContainerProcess]:
        """Those that run, the main process first."""
        snapshot = self.look()
        living = [facts for _, facts in sorted(snapshot.processes.items()) if facts.state != "Z"]
        return [ContainerProcess(self, facts) for facts in living]

    def send_signal(self, pid: int, number: signal.Signals) -> None:
        if pid == MAIN_PROCESS:
            # Its own processes cannot kill the first one of a container.
            self.container.kill(signal=number.name)
        else:
            self._run(_KILL, str(pid), str(int(number)), may_fail=True)
        self._last_seen = float("-inf")

    def _run(self, script: str, *args: str, may_fail: bool = False) -> str | None:
        """The script's output; None where the container has ended.

        Raises RuntimeError where it runs, but its python3 does not.
        """
        from docker.errors import APIError

        try:
            done = self.container.exec_run(["python3", "-I", "-S", "-c", script, *args], demux=True)
        except APIError as error:
            if not self._is_running():
                return None
            raise RuntimeError(f"docker exec in the server's container failed: {error}") from error
        output, errors = (stream or b"" for stream in done.output)
        if done.exit_code == 0 or may_fail:
            return str(output.decode())
        if not self._is_running():
            return None
        said = (errors or output).decode("utf-8", "replace").strip()[-300:]
        raise RuntimeError(f"python3 in the server's container failed: {said}")

    def _is_running(self) -> bool:
        from docker.errors import APIError

        try:
            self.container.reload()
        except APIError:
            return False
        return str(self.container.status) == "running"


class ContainerProcess:
    """A process within a container, as far as `ServerProcess` wants one.

    Its name and command line are those of the moment when it was seen.
    """

    def __init__(self, probe: ContainerProbe, facts: ProcessFacts) -> None:
        self._probe = probe
        self._facts = facts

    @property
    def pid(self) -> int:
        return self._facts.pid

    def name(self) -> str:
        return self._facts.name

    def cmdline(self) -> list[str]:
        return list(self._facts.words)

    def status(self) -> str:
        return _STATES.get(self._now().state, "unknown")

    def num_fds(self) -> int:
        return self._now().files

    def num_threads(self) -> int:
        return self._now().threads

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(self._now().rss)

    def cpu_times(self) -> CpuTimes:
        return self._now().cpu

    def is_running(self) -> bool:
        return self._found() is not None

    def kill(self) -> None:
        self._probe.send_signal(self.pid, signal.SIGKILL)

    def children(self, recursive: bool = False) -> list[ContainerProcess]:
        every = self._probe.look(FRESH_SECONDS).processes
        wanted = _descendants(every, self.pid)
        return [
            ContainerProcess(self._probe, every[pid])
            for pid in wanted
            if every[pid].state != "Z" and (recursive or every[pid].parent == self.pid)
        ]

    def regions(self) -> frozenset[str]:
        """The shared-memory regions that it has mapped or open."""
        found = self._found()
        return frozenset() if found is None else found.regions

    def _found(self) -> ProcessFacts | None:
        facts = self._probe.look(FRESH_SECONDS).processes.get(self.pid)
        return facts if facts is not None and facts.started == self._facts.started else None

    def _now(self) -> ProcessFacts:
        found = self._found()
        if found is None:
            import psutil

            raise psutil.NoSuchProcess(self.pid)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContainerProcess) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, int, int]:
        return (str(self._probe.container.id), self.pid, self._facts.started)

    def __repr__(self) -> str:
        return f"ContainerProcess(pid={self.pid}, name={self.name()!r})"
