"""What the processes of a container look like from inside, for the image's own python3.

The text of these functions is sent there, after that of `proc_stat`: they use nothing else, and do
for the Pythons of old images.
"""

from __future__ import annotations

import contextlib
import inspect
import os

from . import proc_stat
from .proc_stat import Process, read_process

SHM = b"/dev/shm/"


def look() -> dict[str, object]:
    """What /proc tells of every process, and the names in /dev/shm."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            process = read_process(pid)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().decode("utf-8", "replace")
        except (OSError, IndexError):
            continue
        found.append(facts(process, line.rstrip("\0").split("\0")))
    try:
        listing = os.listdir(SHM.decode())
    except OSError:
        listing = []
    return {"processes": found, "shm": listing}


def facts(process: Process, words: list[str]) -> dict[str, object]:
    """What `ProcessFacts` is made of."""
    regions: list[str] = []
    files = 0
    if process.lives:
        with contextlib.suppress(OSError):
            regions, files = regions_and_files(process.pid)
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "pid": process.pid,
        "parent": process.parent,
        "state": process.state,
        "started": process.started,
        "name": process.name,
        "words": words,
        "regions": regions,
        "files": files,
        "threads": process.threads,
        "rss": process.pages * os.sysconf("SC_PAGE_SIZE"),
        "cpu": [process.user / ticks, process.system / ticks],
    }


def regions_and_files(pid: int) -> tuple[list[str], int]:
    """The shared-memory regions that a process has mapped or open, and how many files."""
    used = set()
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6 and fields[5].startswith(SHM):
                used.add(fields[5])
    numbers = os.listdir(f"/proc/{pid}/fd")
    for number in numbers:
        with contextlib.suppress(OSError):
            used.add(os.readlink(f"/proc/{pid}/fd/{number}".encode()))
    names = [
        path[len(SHM) :].decode("utf-8", "replace")
        for path in used
        if path.startswith(SHM) and not path.endswith(b" (deleted)")
    ]
    return names, len(numbers)


#: A program that prints as JSON what `look` sees where it runs.
PROGRAM = "\n".join(
    [
        inspect.getsource(proc_stat),
        f"import contextlib, json, os\nSHM = {SHM!r}",
        *(inspect.getsource(part) for part in (look, facts, regions_and_files)),
        "print(json.dumps(look()))",
    ]
)
