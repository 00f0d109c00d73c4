"""What this host's /proc tells of processes, those in containers too."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

_PROC = Path("/proc")
#: The number of the system call wait4, by machine.
_WAIT4 = {"x86_64": "61", "aarch64": "260"}


def pid_inside(pid: int) -> int | None:
    """The process's id in its innermost PID namespace; None if it has ended."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def waited_for(pid: int) -> set[int]:
    """Children of a process of this host for whose end one of its threads waits.

    Empty where the kernel does not show it: for another user's process.
    """
    awaited = set()
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            # "61 0x1c2f 0x7f…", or "running"
            number, *arguments = (task / "syscall").read_text().split()
            if number == _WAIT4.get(platform.machine()):
                awaited.add(int(arguments[0], 16))
    return {child for child in children(pid) if pid_inside(child) in awaited}


def children(pid: int) -> set[int]:
    """The living children of a process of this host; those that have ended are none."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children()
        return {child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE}
    return set()
