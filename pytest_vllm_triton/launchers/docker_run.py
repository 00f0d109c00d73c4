"""One container as data: what Docker is asked for, and the `docker run` line that equals it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_triton.launchers.ports import LOOPBACK
from pytest_vllm_triton.launchers.redact import is_secret
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_SHM_SIZE

#: What vLLM's shared-memory transport and Triton's many threads need, as NVIDIA's manuals say.
STACK_BYTES = 67108864
UNLIMITED = -1

PRIVATE, HOST, SHARED = "private", "host", "container:"


@dataclass(frozen=True)
class Mount:
    """A folder of this host within the container; one that is missing is an error."""

    source: Path
    target: str
    writable: bool = False

    @classmethod
    def in_place(cls, path: Path, *, writable: bool = False) -> Mount:
        """At the path that it has here, so that paths in model.json mean the same on both sides."""
        return cls(path, str(path), writable)

    def word(self) -> str:
        ending = "" if self.writable else ",readonly"
        return f"--mount=type=bind,source={self.source},target={self.target}{ending}"


@dataclass(frozen=True)
class GpuRequest:
    """The GPUs of a container.

    Attributes:
        names: ("all",), or indexes or UUIDs; (): none.
        cdi: asked for as CDI devices, not through NVIDIA's runtime.
    """

    names: tuple[str, ...] = ()
    cdi: bool = False

    def devices(self) -> list[str]:
        return [f"nvidia.com/gpu={name}" for name in self.names]

    def words(self) -> list[str]:
        if not self.names:
            return []
        if self.cdi:
            return [f"--device={device}" for device in self.devices()]
        if self.names == ("all",):
            return ["--gpus=all"]
        return [f'--gpus="device={",".join(self.names)}"']

    def requests(self) -> list[Any]:
        from docker.types import DeviceRequest

        if not self.names:
            return []
        if self.cdi:
            return [DeviceRequest(driver="cdi", device_ids=self.devices())]
        if self.names == ("all",):
            return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        return [DeviceRequest(device_ids=list(self.names), capabilities=[["gpu"]])]


@dataclass(frozen=True)
class ContainerRun:
    """All that decides what a container is.

    Attributes:
        ports: port within the container -> port on this host's loopback address; None: any.
        ipc: ``private`` (others may still join it), ``host``, or ``container:NAME``.
        shm_size: of its own /dev/shm, such as 1G.
        memlock: whether to ask for unlimited locked memory, which some hosts refuse.
        labels: for the sweep of leftovers; not part of the line.
        entrypoint: instead of the image's.
    """

    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    ports: Mapping[int, int | None] = field(default_factory=dict)
    gpus: GpuRequest = GpuRequest()
    ipc: str = PRIVATE
    shm_size: str = DEFAULT_SHM_SIZE
    memlock: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str | None = None

    def command_line(self) -> list[str]:
        """The equal `docker run` line, without the values of secrets.

        A secret variable stands there by its name alone, which means that docker takes its value
        from the environment of whoever runs the line.
        """
        return [
            *("docker", "run", "--rm"),
            *self.gpus.words(),
            *self._shared_memory_words(),
            *(["--ulimit=memlock=-1"] if self.memlock else []),
            f"--ulimit=stack={STACK_BYTES}",
            *(f"--publish={LOOPBACK}:{on_host or ''}:{port}" for port, on_host in self._ports()),
            *(mount.word() for mount in self.mounts),
            *(
                f"--env={name}" if is_secret(name) else f"--env={name}={value}"
                for name, value in sorted(self.environment.items())
            ),
            *([f"--entrypoint={self.entrypoint}"] if self.entrypoint else []),
            self.image,
            *self.command,
        ]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for the Docker SDK's ``containers.create``."""
        from docker.types import Mount as DockerMount
        from docker.types import Ulimit

        limits = [Ulimit(name="stack", soft=STACK_BYTES, hard=STACK_BYTES)]
        if self.memlock:
            limits.append(Ulimit(name="memlock", soft=UNLIMITED, hard=UNLIMITED))
        own_shm = self.ipc == PRIVATE
        return {
            "image": self.image,
            "command": list(self.command),
            "entrypoint": self.entrypoint,
            "environment": dict(self.environment),
            "mounts": [
                DockerMount(m.target, str(m.source), type="bind", read_only=not m.writable)
                for m in self.mounts
            ],
            "ports": {f"{port}/tcp": (LOOPBACK, on_host) for port, on_host in self._ports()},
            "device_requests": self.gpus.requests(),
            "ipc_mode": "shareable" if own_shm else self.ipc,
            "shm_size": self.shm_size.lower() if own_shm else None,
            "ulimits": limits,
            "labels": dict(self.labels),
            "stdin_open": False,
            "detach": True,
        }

    def _shared_memory_words(self) -> list[str]:
        if self.ipc == PRIVATE:
            return [f"--shm-size={self.shm_size}"]
        return [f"--ipc={self.ipc}"]

    def _ports(self) -> list[tuple[int, int | None]]:
        return sorted(self.ports.items())
