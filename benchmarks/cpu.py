"""CPU time of processes and threads, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_ROLES = (
    ("tritonserver", "tritonserver"),
    ("triton_python_b", "stub"),
    ("VLLM::EngineCor", "engine"),
    ("VLLM::Worker", "worker"),
    ("vllm-rs", "frontend"),
)


def _stat(path: Path) -> tuple[str, float]:
    """(name, user and system CPU seconds)"""
    text = path.read_text(errors="replace")
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return name, (int(fields[11]) + int(fields[12])) / _TICK


def role(name: str) -> str:
    """What a process does, by its name; Python processes without a known name are frontends."""
    return next((role for start, role in _ROLES if name.startswith(start)), "frontend")


def by_role(pids: Iterable[int]) -> dict[str, float]:
    """CPU seconds so far of these processes, summed by role."""
    total: dict[str, float] = {}
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            name, seconds = _stat(Path(f"/proc/{pid}/stat"))
            total[role(name)] = total.get(role(name), 0.0) + seconds
    return total


def by_thread(pid: int) -> dict[int, float]:
    """CPU seconds so far of each thread of a process, by its native id."""
    found: dict[int, float] = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            found[int(folder.name)] = _stat(folder / "stat")[1]
    return found


def of_host() -> float:
    """Seconds so far that the host's cores were not idle, stolen time included."""
    fields = Path("/proc/stat").read_text().split(None, 9)[1:9]
    user, nice, system, _, _, *others = (int(field) for field in fields)
    return (user + nice + system + sum(others)) / _TICK


def find(pids: Iterable[int], wanted: str) -> list[int]:
    """The processes of a role."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            if role(_stat(Path(f"/proc/{pid}/stat"))[0]) == wanted:
                found.append(pid)
    return found
