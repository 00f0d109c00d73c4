"""Containers that outlived their pytest: how ours are known, and how they go.

No reaper container: each container carries labels that say which process of which host started it.
The next run on this host removes those whose process is gone; a guard process (see ``guard``) does
so at once when it can.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pytest_vllm_triton.launchers.container_probe import ContainerProbe
from pytest_vllm_triton.supervision.standalone.proc_stat import read_process
from pytest_vllm_triton.supervision.standalone.shared_memory import list_regions, remove_unused

RUN_LABEL = "pytest-vllm-triton.run"
OWNER_LABEL = "pytest-vllm-triton.owner"
PREFIX_LABEL = "pytest-vllm-triton.shm-prefix"


class Owner(NamedTuple):
    """The process that a container belongs to.

    Attributes:
        machine: tells hosts apart that share a Docker daemon.
        boot: of the kernel.
        namespace: in which ``pid`` is a process id.
        started: tells the process from a later one with the same id.
    """

    machine: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Owner:
        machine = _text("/etc/machine-id") + "/" + socket.gethostname()
        boot = _text("/proc/sys/kernel/random/boot_id")
        return cls(machine, boot, _link("/proc/self/ns/pid"), pid, _started(pid))

    @classmethod
    def read(cls, label: str) -> Owner | None:
        """The owner that a label names; None if it names none."""
        try:
            return cls(**json.loads(label))
        except (ValueError, TypeError):
            return None

    def label(self) -> str:
        return json.dumps(self._asdict())

    def is_dead(self) -> bool:
        """Whether the process is surely gone; False where that cannot be known from here."""
        us = Owner.of(os.getpid())
        if self.machine != us.machine:
            return False
        if self.boot != us.boot:
            return True
        return self.namespace == us.namespace and _started(self.pid) != self.started


def labels(run: str, prefix: str) -> dict[str, str]:
    """The labels of a container that this process starts."""
    owner = Owner.of(os.getpid())
    return {RUN_LABEL: run, OWNER_LABEL: owner.label(), PREFIX_LABEL: prefix}


def sweep(client: Any) -> list[str]:
    """Remove the containers whose processes are gone; the names of those that went."""
    removed = []
    for container in _ours(client, RUN_LABEL):
        owner = Owner.read(container.labels.get(OWNER_LABEL, ""))
        if owner is not None and owner.is_dead():
            remove(container)
            removed.append(str(container.name))
    return removed


def remove_run(client: Any, run: str) -> None:
    """Remove all containers of a run."""
    for container in _ours(client, f"{RUN_LABEL}={run}"):
        remove(container)


def remove(container: Any) -> list[str]:
    """Remove a container, running or not, and what it left in this host's /dev/shm.

    Returns the names of the shared-memory regions that were removed.
    """
    from docker.errors import APIError

    used = host_regions(container)
    with contextlib.suppress(APIError):  # gone already, or being removed by somebody else
        container.remove(force=True, v=True)
    return sweep_regions(used, container.labels.get(PREFIX_LABEL, ""))


def host_regions(container: Any) -> set[str] | None:
    """The regions of this host's /dev/shm that the container uses; None where it has its own."""
    if container.attrs["HostConfig"].get("IpcMode") != "host":
        return None
    names: set[str] = set()
    with contextlib.suppress(Exception):  # an image without python3 must still be removed
        for process in ContainerProbe(container).look().processes.values():
            names |= process.regions
    return names


def sweep_regions(used: Iterable[str] | None, prefix: str) -> list[str]:
    """Remove what a container left of these regions, and of those with its prefix.

    Nothing that any process still uses.
    """
    if used is None:
        return []
    named = {name for name in list_regions() if prefix and name.startswith(prefix)}
    return remove_unused(named.union(used))


def _ours(client: Any, label: str) -> list[Any]:
    # Some may go away while they are listed.
    return list(client.containers.list(all=True, filters={"label": label}, ignore_removed=True))


def _started(pid: int) -> str:
    """When the process started, in clock ticks since the boot; "" if it is gone or a zombie."""
    with contextlib.suppress(OSError, IndexError):
        process = read_process(pid)
        if process.lives:
            return str(process.started)
    return ""


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(path).readlink())
    return ""
