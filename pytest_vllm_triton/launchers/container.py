"""Start tritonserver in a Docker container, and leave no container behind."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.gpus import host_has_gpu
from pytest_vllm_triton.launchers import docker_engine, leftovers
from pytest_vllm_triton.launchers.base import (
    HOST_SHM,
    Endpoints,
    ServerHandle,
    ServerLog,
    ServerSpec,
)
from pytest_vllm_triton.launchers.container_handle import DRAIN_SECONDS, ContainerHandle
from pytest_vllm_triton.launchers.container_log import LogFollower, exit_code
from pytest_vllm_triton.launchers.container_probe import ContainerProbe
from pytest_vllm_triton.launchers.docker_run import (
    HOST,
    PRIVATE,
    SHARED,
    ContainerRun,
    GpuRequest,
    Mount,
)
from pytest_vllm_triton.launchers.flags import (
    check_spec,
    exit_timeout,
    metrics_off,
    model_flags,
    python_backend_flags,
)
from pytest_vllm_triton.launchers.ports import LOOPBACK
from pytest_vllm_triton.launchers.readiness import wait_ready
from pytest_vllm_triton.launchers.redact import Redactor
from pytest_vllm_triton.launchers.repository import ServerFolder
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_SHM_SIZE
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.supervision.client import Supervised

#: Where NVIDIA's images, and so all others, have the vLLM backend.
BACKEND_PATH = "/opt/tritonserver/backends/vllm"
HTTP, GRPC, METRICS = 8000, 8001, 8002
#: Variables of ours that the server gets too, if they are set: how to reach the hub.
PASSED_ON = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
#: What the guard needs to find the daemon that we have found.
GUARD_VARIABLES = ("PATH", "HOME", "DOCKER_", "TESTCONTAINERS_", "TC_", "XDG_", "SSL_", "LANG")
GUARD_SECONDS = 60.0
NOT_FOUND = 127

_NO_BACKEND = "unable to find backend library for backend 'vllm'"


@dataclass(frozen=True)
class ContainerOptions:
    """What the user asks for.

    Attributes:
        gpus: ``all``, ``none`` or names divided by commas; None: all that this host has.
        ipc: ``private``, or ``host``: servers use this host's /dev/shm.
        shm_size: of a /dev/shm of its own.
    """

    image: str
    gpus: str | None = None
    ipc: str = PRIVATE
    shm_size: str = DEFAULT_SHM_SIZE


class ContainerLauncher:
    """Starts containers of an image.

    Args:
        work_dir: each server gets a folder of its own in it.
        visible: further folders of this host that servers read, at the paths they have here.
        hub_cache: the Hugging Face hub's cache, which servers use too, if it exists.
    """

    def __init__(
        self,
        options: ContainerOptions,
        work_dir: Path,
        visible: Sequence[Path] = (),
        hub_cache: Path | None = None,
    ) -> None:
        self.options = options
        self.work_dir = work_dir
        self.visible = tuple(visible)
        self.hub_cache = hub_cache
        self.run_id = secrets.token_hex(8)
        self.notes: list[str] = []
        self._client: Any = None
        self._guard: Supervised | None = None
        self._gpus = GpuRequest()
        self._memlock = True

    def describe(self) -> str:
        gpus = self.options.gpus or ("all" if host_has_gpu() else "none, this host has none")
        shm = "this host's" if self.options.ipc == HOST else self.options.shm_size
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.options.image}, GPUs: {gpus}, /dev/shm: {shm}{notes}"

    def prepare(self, progress: Progress = silent) -> None:
        """Reach Docker, remove what earlier runs left, get the image; harmless when called again.

        Raises UserError for whatever of it is not to be had.
        """
        if self._client is None:
            self._client = self._connect(progress)
        if self._guard is None:
            self._guard = self._start_guard()

    def _connect(self, progress: Progress) -> Any:
        client = docker_engine.connect()
        try:
            for name in leftovers.sweep(client):
                progress(f"removed {name}, which an earlier run had left")
            docker_engine.ensure_image(client, self.options.image, progress)
            self._gpus = docker_engine.gpu_request(
                self.options.gpus, client.info(), has_gpu=host_has_gpu()
            )
        except BaseException:
            client.close()
            raise
        return client

    def close(self) -> None:
        """Remove what containers there still are, and end the guard."""
        if self._guard is not None:
            self._guard.end(GUARD_SECONDS)
            self._guard = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        progress: Progress = silent,
    ) -> ServerHandle:
        check_spec(spec)
        self.prepare(progress)
        start = time.monotonic()
        folder = ServerFolder.create(self.work_dir, spec)
        container, run = self._start(self._server_run(spec, folder), progress)
        try:
            handle = self._handle(container, run, spec, folder)
        except BaseException:
            leftovers.remove(container)
            raise
        try:
            wait_ready(handle, spec.started_models, timeout=timeout, progress=progress)
        except ServerFailed as failure:
            handle.kill()
            raise self._explained(failure, handle) from None
        except BaseException:
            handle.kill()
            raise
        handle.boot_seconds = time.monotonic() - start
        return handle

    def run_python(
        self,
        script: str,
        args: Sequence[str] = (),
        *,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script (its text) in a container of its own, in the image's python3."""
        from requests.exceptions import RequestException

        self.prepare()
        run = self._run(("-c", script, *args), entrypoint="python3")
        container, run = self._start(run, silent)
        try:
            status = container.wait(timeout=timeout)["StatusCode"]
            output, errors = (
                container.logs(stdout=out, stderr=not out).decode("utf-8", "replace")
                for out in (True, False)
            )
        except RequestException:
            raise subprocess.TimeoutExpired(["python3"], timeout or 0) from None
        finally:
            leftovers.remove(container)
        return subprocess.CompletedProcess(run.command_line(), exit_code(status), output, errors)

    # what is run

    def _server_run(self, spec: ServerSpec, folder: ServerFolder) -> ContainerRun:
        command = (
            "tritonserver",
            *model_flags(spec, folder.models),
            *python_backend_flags(folder.shm_prefix),
            *spec.args,
        )
        run = self._run(command, prefix=folder.shm_prefix, environment=spec.env)
        mounts = run.mounts
        if folder.backend is not None:
            mounts = (*mounts, Mount(folder.backend, BACKEND_PATH))
        ipc = run.ipc
        if spec.shm_domain is not None and ipc == PRIVATE:
            ipc = f"{SHARED}{spec.shm_domain}"
        ports = {HTTP: None, GRPC: None, METRICS: None}
        return replace(run, mounts=mounts, ports=ports, ipc=ipc)

    def _run(
        self,
        command: tuple[str, ...],
        *,
        prefix: str = "",
        environment: Mapping[str, str] | None = None,
        entrypoint: str | None = None,
    ) -> ContainerRun:
        variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
        # The work folder holds each server's model repository, and the models that tests make.
        mounts = [Mount.in_place(path) for path in (self.work_dir, *self.visible) if path.exists()]
        if self.hub_cache is not None and self.hub_cache.is_dir():
            mounts.append(Mount.in_place(self.hub_cache, writable=True))
            variables["HF_HUB_CACHE"] = str(self.hub_cache)
        return ContainerRun(
            image=self.options.image,
            command=command,
            environment={**variables, **(environment or {})},
            mounts=tuple(mounts),
            gpus=self._gpus,
            ipc=self.options.ipc,
            shm_size=self.options.shm_size,
            memlock=self._memlock,
            labels=leftovers.labels(self.run_id, prefix),
            entrypoint=entrypoint,
        )

    # starting

    def _start(self, run: ContainerRun, progress: Progress) -> tuple[Any, ContainerRun]:
        """A started container, and what it was started as."""
        from docker.errors import APIError

        container = None
        try:
            container = self._client.containers.create(
                **run.arguments(), name=f"pytest-vllm-triton-{secrets.token_hex(6)}"
            )
            container.start()
        except APIError as error:
            # One that could not be started stays, in the state Created.
            if container is not None:
                leftovers.remove(container)
            said = self._redactor(run.environment).text(str(error.explanation or error))
            if run.memlock and docker_engine.refused_limit(said) == "memlock":
                self._memlock = False
                self.notes.append("without --ulimit memlock=-1, which this host refuses")
                progress(f"containers are started {self.notes[-1]}")
                return self._start(replace(run, memlock=False), progress)
            raise UserError(docker_engine.no_start(run.image, said)) from None
        except BaseException:
            if container is not None:
                leftovers.remove(container)
            raise
        return container, run

    def _handle(
        self, container: Any, run: ContainerRun, spec: ServerSpec, folder: ServerFolder
    ) -> ContainerHandle:
        redactor = self._redactor(run.environment)
        log = LogFollower(docker_engine.connect, container.id, folder.log, redactor)
        log.start()
        container.reload()
        network = container.attrs["NetworkSettings"]
        published = network["Ports"]
        ports = {
            port: int(published[f"{port}/tcp"][0]["HostPort"])
            for port in run.ports
            if published.get(f"{port}/tcp")
        }
        if len(ports) < len(run.ports):  # it has ended already
            log.wait(DRAIN_SECONDS)
            ports = dict.fromkeys(run.ports, 0)
        else:
            run = replace(run, ports=ports)
        own = docker_engine.bridge_address(network)
        address = {p: f"{own}:{p}" if own else f"{LOOPBACK}:{ports[p]}" for p in ports}
        line = run.command_line()
        (folder.path / "docker-run.txt").write_text(shlex.join(line) + "\n")
        return ContainerHandle(
            endpoints=Endpoints(
                http=f"http://{address[HTTP]}",
                grpc=address[GRPC],
                metrics=None if metrics_off(spec.args) else f"http://{address[METRICS]}/metrics",
            ),
            log=ServerLog(folder.log),
            spec=spec,
            model_repository=folder.models,
            backend_folder=folder.backend,
            backend_path=BACKEND_PATH,
            metrics_address=address[METRICS],
            shm_prefix=folder.shm_prefix,
            shm_domain=_shm_domain(run, container),
            command=line,
            redactor=redactor,
            container=container,
            probe=ContainerProbe(container),
            shm=self._shm_of(run),
            follower=log,
            exit_timeout=exit_timeout(spec.args),
            given_gpus=None if run.gpus.names == ("all",) else ",".join(run.gpus.names),
        )

    def _shm_of(self, run: ContainerRun) -> ContainerProbe | None:
        """A look into the container whose /dev/shm this one shares."""
        if not run.ipc.startswith(SHARED):
            return None
        return ContainerProbe(self._client.containers.get(run.ipc.removeprefix(SHARED)))

    def _explained(self, failure: ServerFailed, handle: ContainerHandle) -> ServerFailed:
        """The failure with what is known of images, and with the line to try it by hand."""
        reason = failure.reason
        if handle.exit_code() == NOT_FOUND:
            reason += " " + docker_engine.no_tritonserver(self.options.image)
        elif _NO_BACKEND in reason:
            reason += (
                f" The image {self.options.image} has no vLLM backend in {BACKEND_PATH}: leave out "
                "--triton-backend-dir=image, or give the folder of a backend with it."
            )
        elif handle.out_of_memory:
            reason += " It was killed for lack of memory."
        return type(failure)(reason, failure.log_tail, handle.reproduce())

    def _redactor(self, environment: Mapping[str, str] | None = None) -> Redactor:
        return Redactor(os.environ, environment or {})

    def _start_guard(self) -> Supervised:
        folder = self.work_dir / f"guard-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if k.startswith(GUARD_VARIABLES)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        guard = Supervised.start(
            [sys.executable, "-m", "pytest_vllm_triton.launchers.guard", self.run_id],
            environment,
            folder,
            log=folder / "guard.log",
            orphan_grace=GUARD_SECONDS,
        )
        guard.wait_started()
        return guard


def _shm_domain(run: ContainerRun, container: Any) -> str:
    if run.ipc == HOST:
        return HOST_SHM
    return run.ipc.removeprefix(SHARED) if run.ipc.startswith(SHARED) else str(container.id)
