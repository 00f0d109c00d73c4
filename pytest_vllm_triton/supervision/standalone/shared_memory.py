"""Regions of /dev/shm: who uses them, which are a server's own, and what it left."""

from __future__ import annotations

import contextlib
import os
import re
import time

from .processes import all_processes, family

SHM = "/dev/shm"
#: Names that vLLM, multiprocessing and Triton give to the regions they make.
REGION_NAMES = re.compile(r"psm_|sem\.mp-|triton_")
LOOK_AGAIN_SECONDS = 5.0
#: The inode of the first PID namespace, fixed by the kernel (PROC_PID_INIT_INO).
FIRST_PID_NAMESPACE = "pid:[4026531836]"

Identity = tuple[int, int]
"""Device and inode: the same region under any name and in any mount namespace."""


def list_regions() -> set[str]:
    try:
        return set(os.listdir(SHM))
    except OSError:
        return set()


def identities(names: set[str]) -> dict[Identity, str]:
    """The regions of these names that this user owns."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(SHM, name), follow_symlinks=False)
            if status.st_uid == os.geteuid():
                found[status.st_dev, status.st_ino] = name
    return found


def regions_of(pid: int) -> set[Identity]:
    """The files that a process has mapped or open. Raises OSError where it may not be seen."""
    used = set()
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[4] != b"0":
                major, minor = fields[3].split(b":")
                used.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{number}")
            used.add((status.st_dev, status.st_ino))
    return used


def remove_unused(names: set[str]) -> list[str]:
    """Remove those of these regions that no process uses; the names of those that went."""
    by_identity = identities(names & list_regions())
    for pid in all_processes() if by_identity else ():
        with contextlib.suppress(OSError):
            for identity in regions_of(pid) & by_identity.keys():
                del by_identity[identity]
    removed = []
    for name in sorted(by_identity.values()):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(SHM, name))
            removed.append(name)
    return removed


def sees_all_processes() -> bool:
    """False inside a container: others may share its /dev/shm whose processes it cannot see."""
    try:
        return os.readlink("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
    except OSError:
        return False


class Regions:
    """Which regions of /dev/shm belong to the server, and which must never be touched.

    Attributes:
        ours: regions that only the server's processes were seen using.
        foreign: regions that another process was seen using: never ours again.
    """

    def __init__(self, prefix: str, before: set[str]) -> None:
        self.prefix = prefix
        self.before = before
        self.ours: set[str] = set()
        self.foreign: set[str] = set()
        self.looked_at: set[str] = set()
        self.look_again = 0.0

    def unknown(self) -> set[str]:
        """The regions made since the start that nobody has been seen using yet."""
        return list_regions() - self.before - self.ours - self.foreign

    def take_due(self) -> set[str]:
        """The unknown regions, when it is time to look: at once for new ones, else seldom.

        They count as looked at from now on.
        """
        names, now = self.unknown(), time.monotonic()
        if not names or (names <= self.looked_at and now < self.look_again):
            return set()
        self.looked_at, self.look_again = names, now + LOOK_AGAIN_SECONDS
        return names

    def observe(self, names: set[str], tree: list[int]) -> bool:
        """Look who uses these regions; True on news."""
        by_identity = identities(names)
        processes = all_processes() if by_identity else {}
        # With those that were started since the tree was looked at: they are no strangers.
        own = set(tree).union(family(processes, tree))
        ours: set[str] = set()
        foreign: set[str] = set()
        for pid in processes:
            with contextlib.suppress(OSError):
                used = {by_identity[i] for i in regions_of(pid) if i in by_identity}
                (ours if pid in own else foreign).update(used)
        self.foreign |= foreign
        self.ours |= ours - foreign
        return bool(ours or foreign)

    def sweep(self) -> list[str]:
        """Remove what the server left. Only when none of its processes lives any more."""
        names = set(self.ours)
        for name in self.unknown():
            if self.prefix and name.startswith(self.prefix):
                names.add(name)
            elif REGION_NAMES.match(name) and sees_all_processes():
                names.add(name)  # made just before its maker died
        return remove_unused(names)
