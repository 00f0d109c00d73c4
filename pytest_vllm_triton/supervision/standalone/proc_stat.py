"""What /proc/PID/stat tells of a process.

Its text is also sent into containers, before a script that looks at what runs there: it must do for
the Pythons of old images.
"""

from __future__ import annotations

from typing import NamedTuple


class Process(NamedTuple):
    """A process, as long as its parent has not waited for it.

    Attributes:
        state: one letter.
        user: clock ticks of processor time of its own.
        system: clock ticks of the kernel's for it.
        started: clock ticks after the boot; tells it from a later process with the same id.
        pages: of memory.
    """

    pid: int
    name: str
    state: str
    parent: int
    group: int
    user: int
    system: int
    threads: int
    started: int
    pages: int

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet."""
        return self.state not in "ZX"


def read_process(pid: int | str) -> Process:
    """The process of this id; raises OSError or IndexError where it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # "PID (NAME) STATE ...", and the name may hold spaces and brackets.
        head, _, rest = file.read().rpartition(b")")
    name, fields = head.partition(b"(")[2], rest.split()
    return Process(
        pid=int(pid),
        name=name.decode("utf-8", "replace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        user=int(fields[11]),
        system=int(fields[12]),
        threads=int(fields[17]),
        started=int(fields[19]),
        pages=int(fields[21]),
    )
