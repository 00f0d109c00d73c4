"""This host's processes, as /proc tells of them; whose descendants they are, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from .proc_stat import Process, read_process


def all_processes() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                found[int(name)] = read_process(name)
    return found


def descendants(root: int) -> list[int]:
    """The living descendants of ``root``; zombies are none, but their children are looked at."""
    return family(all_processes(), [root])


def births(pids: list[int]) -> list[list[int]]:
    """[process id, start] of each that is still there; the start tells it from a later one."""
    processes = all_processes()
    return [[pid, processes[pid].started] for pid in pids if pid in processes]


def remaining_family(group: int, noted: list[list[int]]) -> list[int]:
    """The living processes of a process group and those that were `noted` (see `births`), and all
    their descendants.

    What is left to find a server's processes by, when its supervisor is gone and init has adopted
    its orphans.
    """
    processes = all_processes()
    members = [
        process.pid
        for process in processes.values()
        if process.group == group or [process.pid, process.started] in noted
    ]
    living = {pid for pid in members if processes[pid].lives}
    return sorted(living.union(family(processes, members)))


def family(processes: dict[int, Process], roots: list[int]) -> list[int]:
    """The living descendants of ``roots``."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found, queue = [], [child for root in roots for child in children.get(root, ())]
    while queue:
        pid = queue.pop()
        queue.extend(children.get(pid, ()))
        if processes[pid].lives:
            found.append(pid)
    return found


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        if not text:
            with open(f"/proc/{pid}/comm") as comm:
                text = comm.read().strip()
    except OSError:
        return "?"
    return text if len(text) <= 200 else text[:197] + "..."


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_all(find: Callable[[], list[int]], seconds: float) -> list[int]:
    """SIGKILL what ``find`` finds until it finds nothing (children forked meanwhile too).

    Returns those still there after ``seconds``, which no signal can end (uninterruptible sleep).
    """
    deadline = time.monotonic() + seconds
    while living := find():
        for pid in living:
            send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return living
        time.sleep(0.01)
    return []


def reap() -> dict[int, int]:
    """Collect every child that ended, adopted ones too: pid -> exit code (-N for signal N)."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended
