"""A tritonserver in a container: its state, seen from inside, and its end."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_triton.gpus import VISIBLE_DEVICES, Gpu, list_gpus, visible_gpus
from pytest_vllm_triton.launchers import leftovers
from pytest_vllm_triton.launchers.base import HOST_SHM, ServerHandle, ServerProcess
from pytest_vllm_triton.launchers.container_log import LogFollower
from pytest_vllm_triton.launchers.container_probe import ContainerProbe, ContainerProcess
from pytest_vllm_triton.launchers.flags import EXIT_TIMEOUT_SECONDS, STOP_MARGIN_SECONDS
from pytest_vllm_triton.launchers.host_proc import pid_inside
from pytest_vllm_triton.supervision.standalone.shared_memory import list_regions
from pytest_vllm_triton.supervision.stop_report import StopReport

#: The last lines of a log may come after the container's end.
DRAIN_SECONDS = 10.0


@dataclass(kw_only=True, eq=False)
class ContainerHandle(ServerHandle):
    """A tritonserver in a container.

    Attributes:
        container: the Docker SDK's object.
        probe: looks into it.
        follower: of its log.
        shm: a look into the container whose /dev/shm this one shares; None: it shares none.
        given_gpus: names of the GPUs that Docker gave it, as in CUDA_VISIBLE_DEVICES; None: all.
    """

    container: Any
    probe: ContainerProbe
    follower: LogFollower
    shm: ContainerProbe | None = None
    exit_timeout: float = EXIT_TIMEOUT_SECONDS
    given_gpus: str | None = None
    out_of_memory: bool = False
    _ending: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def host_pid(self) -> int | None:
        from docker.errors import APIError

        with contextlib.suppress(APIError):
            self.container.reload()
            return self.container.attrs["State"]["Pid"] or None
        return None

    @property
    def container_id(self) -> str:
        return str(self.container.id)

    def is_running(self) -> bool:
        return self.stop_report is None and not self.follower.ended

    def exit_code(self) -> int | None:
        if self.stop_report is not None:
            return self.stop_report.exit_code
        return self.follower.exit_code

    def processes(self) -> list[ContainerProcess]:
        return self.probe.processes() if self.stop_report is None else []

    def main_process(self) -> ContainerProcess | None:
        return next(iter(self.processes()), None)

    def send_signal(self, number: signal.Signals) -> None:
        if self.is_running():
            self.container.kill(signal=number.name)

    def regions_of(self, processes: Iterable[ServerProcess]) -> set[str]:
        ours = [process for process in processes if isinstance(process, ContainerProcess)]
        return {name for process in ours for name in process.regions()}

    def all_regions(self) -> set[str]:
        if self.shm_domain == HOST_SHM:
            return list_regions()
        owner = self.probe if self.shm is None else self.shm
        return set(owner.look().shm)

    def gpus(self) -> tuple[Gpu, ...]:
        # Docker hands over GPUs in the host's order, in whichever they were asked for.
        given = visible_gpus(self.given_gpus, list_gpus())
        own = self.spec.env.get(VISIBLE_DEVICES) if self.spec is not None else None
        return visible_gpus(own, sorted(given, key=lambda gpu: gpu.index))

    def gpu_names(self) -> list[str]:
        return [str(number) for number, _ in enumerate(self.gpus())]

    def _host_pids(self, processes: Iterable[ServerProcess]) -> list[int]:
        wanted = {process.pid for process in processes}
        rows = self.container.top(ps_args="-eo pid")["Processes"]
        return [int(row[0]) for row in rows if pid_inside(int(row[0])) in wanted]

    @property
    def leaves_shm_when_killed(self) -> bool:
        return self.shm_domain != self.container_id

    def stop(self, timeout: float | None = None) -> int | None:
        return self._end(self.exit_timeout + STOP_MARGIN_SECONDS if timeout is None else timeout)

    def kill(self) -> None:
        self._end(0.0)

    def _end(self, grace: float) -> int | None:
        with self._ending:
            if self.stop_report is None:
                # Whatever Docker does: a test's clean-up must go on to the next server.
                with contextlib.suppress(Exception):
                    used = leftovers.host_regions(self.container)
                    forced = self._stop_running(grace)
                    swept = leftovers.remove(self.container)
                    swept += leftovers.sweep_regions(used, self.shm_prefix or "")
                    self.stop_report = StopReport(
                        self.follower.exit_code, forced, swept=tuple(sorted(set(swept)))
                    )
                if self.stop_report is None:
                    self.stop_report = StopReport(self.follower.exit_code, forced=True)
            return self.stop_report.exit_code

    def _stop_running(self, grace: float) -> bool:
        """End the container if it runs; whether that took force."""
        from docker.errors import APIError

        running = not self.follower.ended
        if running:
            with contextlib.suppress(APIError):  # it ends by itself just now
                if grace > 0:
                    self.container.stop(timeout=math.ceil(grace))
                else:
                    self.container.kill()
        self.follower.wait(DRAIN_SECONDS)
        with contextlib.suppress(APIError):
            self.container.reload()
            self.out_of_memory = bool(self.container.attrs["State"].get("OOMKilled"))
        return running and self.follower.exit_code == -signal.SIGKILL
