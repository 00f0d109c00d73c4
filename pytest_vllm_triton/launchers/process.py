"""Start a tritonserver of this host as a process, under a supervisor that nothing can outlive."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import VISIBLE_DEVICES, Gpu, list_gpus, visible_gpus
from pytest_vllm_triton.launchers.base import (
    HOST_SHM,
    Endpoints,
    ServerHandle,
    ServerLog,
    ServerProcess,
    ServerSpec,
)
from pytest_vllm_triton.launchers.flags import (
    EXIT_TIMEOUT_SECONDS,
    STOP_MARGIN_SECONDS,
    check_spec,
    exit_timeout,
    metrics_off,
    model_flags,
    python_backend_flags,
)
from pytest_vllm_triton.launchers.ports import LOOPBACK, reserved_ports
from pytest_vllm_triton.launchers.readiness import PortTaken, wait_ready
from pytest_vllm_triton.launchers.redact import Redactor
from pytest_vllm_triton.launchers.repository import ServerFolder
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.server_environment import inherited
from pytest_vllm_triton.supervision.client import Supervised
from pytest_vllm_triton.supervision.standalone import shared_memory
from pytest_vllm_triton.supervision.standalone.processes import send

if TYPE_CHECKING:
    import psutil

#: How long a server may live on when pytest has died: SIGTERM, then SIGKILL after this. Short: the
#: sweep needs no help of the server's, and on a busy machine the kernel takes seconds to free the
#: memory of a killed engine.
ORPHAN_GRACE_SECONDS = 2.0
PORT_ATTEMPTS = 3


class ProcessLauncher:
    """Starts a tritonserver binary of this host.

    Attributes:
        tritonserver: the binary.
        backends: a folder that holds ``python/``, Triton's python backend with its stub.
        environment: what the server's environment needs beyond ours.
        work_dir: each server gets a folder of its own in it.
    """

    def __init__(
        self,
        tritonserver: Path,
        backends: Path,
        environment: Mapping[str, str],
        work_dir: Path,
    ) -> None:
        self.tritonserver = tritonserver
        self.backends = backends
        self.environment = dict(environment)
        self.work_dir = work_dir

    def close(self) -> None:
        """Nothing: each server has a supervisor of its own, which ends with it."""

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        progress: Progress = silent,
    ) -> ServerHandle:
        self._check(spec)
        start = time.monotonic()
        handle = self._launch_on_free_ports(spec, start + timeout, progress)
        handle.boot_seconds = time.monotonic() - start
        return handle

    def _check(self, spec: ServerSpec) -> None:
        check_spec(spec)
        if not os.access(self.tritonserver, os.X_OK):
            raise UserError(f"{self.tritonserver} is not an executable tritonserver.")
        if not (self.backends / "python").is_dir():
            raise UserError(f"{self.backends} holds no 'python' backend for Triton.")
        if spec.backend_dir is None:
            raise UserError("The backend of an image is tested with --triton-launcher container.")

    def _launch_on_free_ports(
        self, spec: ServerSpec, deadline: float, progress: Progress
    ) -> ProcessHandle:
        for _ in range(1, PORT_ATTEMPTS):
            try:
                return self._launch_once(spec, deadline, progress)
            except PortTaken as taken:
                progress(f"{taken.reason} Starting again with other ports")
        return self._launch_once(spec, deadline, progress)

    def _launch_once(self, spec: ServerSpec, deadline: float, progress: Progress) -> ProcessHandle:
        timeout = max(1.0, deadline - time.monotonic())
        folder = ServerFolder.create(self.work_dir, spec)
        (folder.backends / "python").symlink_to((self.backends / "python").resolve())
        metrics = not metrics_off(spec.args)
        with reserved_ports(3) as ports:
            http, grpc, metrics_port = ports
            command = [
                str(self.tritonserver),
                *model_flags(spec, folder.models),
                f"--backend-directory={folder.backends}",
                f"--http-address={LOOPBACK}",
                f"--http-port={http}",
                f"--grpc-address={LOOPBACK}",
                f"--grpc-port={grpc}",
                f"--metrics-address={LOOPBACK}",
                f"--metrics-port={metrics_port}",
                *python_backend_flags(folder.shm_prefix),
                *spec.args,
            ]
            environment = {**inherited(), **self.environment, **spec.env}
            redactor = Redactor(os.environ, environment)
            process = Supervised.start(
                command,
                environment,
                folder.path,
                log=folder.log,
                shm_prefix=folder.shm_prefix,
                orphan_grace=ORPHAN_GRACE_SECONDS,
            )
            handle = ProcessHandle(
                endpoints=Endpoints(
                    http=f"http://{LOOPBACK}:{http}",
                    grpc=f"{LOOPBACK}:{grpc}",
                    metrics=f"http://{LOOPBACK}:{metrics_port}/metrics" if metrics else None,
                ),
                log=ServerLog(folder.log, redactor),
                spec=spec,
                model_repository=folder.models,
                backend_folder=folder.backend,
                backend_path=str(folder.backend),
                metrics_address=f"{LOOPBACK}:{metrics_port}",
                shm_prefix=folder.shm_prefix,
                shm_domain=HOST_SHM,
                command=command,
                environment=_difference(environment),
                redactor=redactor,
                visible_gpus=environment.get(VISIBLE_DEVICES),
                process=process,
                exit_timeout=exit_timeout(spec.args),
            )
            try:
                handle.process.wait_started()
                wait_ready(handle, spec.started_models, timeout=timeout, progress=progress)
            except BaseException:
                handle.kill()
                raise
        return handle


@dataclass(kw_only=True, eq=False)
class ProcessHandle(ServerHandle):
    """A tritonserver process, its descendants, and the supervisor over them.

    Attributes:
        process: tritonserver under its supervisor.
        visible_gpus: its CUDA_VISIBLE_DEVICES; None where that is not set.
    """

    process: Supervised
    exit_timeout: float = EXIT_TIMEOUT_SECONDS
    visible_gpus: str | None = None

    def host_pid(self) -> int | None:
        return self.process.pid

    def exit_code(self) -> int | None:
        return self.process.exit_code

    def is_running(self) -> bool:
        return self.process.is_running()

    def processes(self) -> list[psutil.Process]:
        import psutil

        found = []
        for pid in self.process.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def main_process(self) -> psutil.Process | None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            if (pid := self.host_pid()) is not None and self.is_running():
                return psutil.Process(pid)
        return None

    def send_signal(self, number: signal.Signals) -> None:
        if (pid := self.host_pid()) is not None and self.is_running():
            send(pid, number)

    def regions_of(self, processes: Iterable[ServerProcess]) -> set[str]:
        named = shared_memory.identities(shared_memory.list_regions())
        names: set[str] = set()
        for process in processes:
            with contextlib.suppress(OSError):
                used = shared_memory.regions_of(process.pid)
                names |= {named[key] for key in used if key in named}
        return names

    def all_regions(self) -> set[str]:
        return shared_memory.list_regions()

    def gpus(self) -> tuple[Gpu, ...]:
        return visible_gpus(self.visible_gpus, list_gpus())

    def stop(self, timeout: float | None = None) -> int | None:
        grace = self.exit_timeout + STOP_MARGIN_SECONDS if timeout is None else timeout
        self.stop_report = self.process.end(grace)
        return self.stop_report.exit_code

    def kill(self) -> None:
        self.stop_report = self.process.end(0.0)


def _difference(environment: Mapping[str, str]) -> dict[str, str | None]:
    changed: dict[str, str | None] = {k: None for k in os.environ if k not in environment}
    changed.update({k: v for k, v in environment.items() if os.environ.get(k) != v})
    return dict(sorted(changed.items()))
