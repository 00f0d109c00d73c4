"""Start a tritonserver of this host as a process, under a supervisor that nothing can outlive."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.launchers.base import (
    Endpoints,
    Progress,
    ServerHandle,
    ServerLog,
    ServerSpec,
)
from pytest_vllm_triton.launchers.ports import LOOPBACK, reserved_ports
from pytest_vllm_triton.launchers.readiness import PortTaken, wait_ready
from pytest_vllm_triton.launchers.repository import write_repository
from pytest_vllm_triton.launchers.supervised import Supervised

if TYPE_CHECKING:
    import psutil

#: Triton's own default of --exit-timeout-secs; a graceful stop may take that long.
EXIT_TIMEOUT_SECONDS = 30
#: How long a server may live on when pytest has died: SIGTERM, then SIGKILL after this. Short: the
#: sweep needs no help of the server's, and on a busy machine the kernel takes seconds to free the
#: memory of a killed engine.
ORPHAN_GRACE_SECONDS = 2.0
#: The python backend gives up on a stub that is silent this long; importing vLLM takes a while.
STUB_TIMEOUT_SECONDS = 300
#: What a graceful stop may take beyond Triton's own exit timeout.
STOP_MARGIN_SECONDS = 10.0
PORT_ATTEMPTS = 3

#: Flags that the launcher sets; a second value would break what the handle says of the server.
OWN_FLAGS = frozenset(
    {
        "--http-port",
        "--http-address",
        "--grpc-port",
        "--grpc-address",
        "--metrics-port",
        "--metrics-address",
        "--model-repository",
        "--model-store",
        "--model-control-mode",
        "--load-model",
        "--backend-directory",
        "--log-file",
        "--allow-http",
        "--allow-grpc",
        "--allow-sagemaker",
        "--allow-vertex-ai",
    }
)
#: Variables of pytest's own Python that would mislead the Python inside the server.
DROPPED_VARIABLES = re.compile(r"PYTHON|PYTEST_|COVERAGE_|COV_CORE_|VIRTUAL_ENV|CONDA_|__PYVENV")


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

    def describe(self) -> str:
        return f"process ({self.tritonserver})"

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        on_progress: Progress | None = None,
    ) -> ServerHandle:
        self._check(spec)
        start = time.monotonic()
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                left = max(1.0, timeout - (time.monotonic() - start))
                handle = self._launch_once(spec, left, on_progress)
            except PortTaken as taken:
                if attempt == PORT_ATTEMPTS:
                    raise
                if on_progress is not None:
                    on_progress(f"{taken.reason} Starting again with other ports")
            else:
                handle.boot_seconds = time.monotonic() - start
                return handle
        raise AssertionError("unreachable")

    def _check(self, spec: ServerSpec) -> None:
        for flag in (word.partition("=")[0] for word in spec.args):
            if flag in OWN_FLAGS:
                raise UserError(f"tritonserver's {flag} is the launcher's own to set.")
        if not os.access(self.tritonserver, os.X_OK):
            raise UserError(f"{self.tritonserver} is not an executable tritonserver.")
        if not (self.backends / "python").is_dir():
            raise UserError(f"{self.backends} holds no 'python' backend for Triton.")
        if not spec.backend_dir.is_dir():
            raise UserError(f"The backend directory {spec.backend_dir} does not exist.")
        uses_vllm = any(re.search(r'backend\s*:\s*"vllm"', model.config) for model in spec.models)
        if uses_vllm and not (spec.backend_dir / "model.py").is_file():
            nested = spec.backend_dir / "src"
            hint = f" Did you mean {nested}?" if (nested / "model.py").is_file() else ""
            raise UserError(f"The backend directory {spec.backend_dir} has no model.py.{hint}")

    def _launch_once(
        self, spec: ServerSpec, timeout: float, on_progress: Progress | None
    ) -> ProcessHandle:
        prefix = spec.shm_prefix or f"pvt_{secrets.token_hex(6)}_"
        folder = self.work_dir / f"server-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        repository = write_repository(spec.models, folder / "models")
        backends = self._private_backends(spec, folder / "backends")
        metrics = not _metrics_off(spec.args)
        with reserved_ports(3) as ports:
            http, grpc, metrics_port = ports
            command = [
                str(self.tritonserver),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                f"--model-control-mode={spec.control_mode}",
                *(
                    f"--load-model={name}"
                    for name in spec.started_models
                    if spec.control_mode == "explicit"
                ),
                f"--http-address={LOOPBACK}",
                f"--http-port={http}",
                f"--grpc-address={LOOPBACK}",
                f"--grpc-port={grpc}",
                f"--metrics-address={LOOPBACK}",
                f"--metrics-port={metrics_port}",
                f"--backend-config=python,shm-region-prefix-name={prefix}",
                f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_SECONDS}",
                *spec.args,
            ]
            environment = self._environment(spec)
            process = Supervised.start(
                command,
                environment,
                folder,
                log=folder / "triton.log",
                shm_prefix=prefix,
                orphan_grace=ORPHAN_GRACE_SECONDS,
            )
            handle = ProcessHandle(
                endpoints=Endpoints(
                    http=f"http://{LOOPBACK}:{http}",
                    grpc=f"{LOOPBACK}:{grpc}",
                    metrics=f"http://{LOOPBACK}:{metrics_port}/metrics" if metrics else None,
                ),
                log=ServerLog(folder / "triton.log"),
                spec=spec,
                model_repository=repository,
                shm_prefix=prefix,
                command=command,
                environment=_difference(environment),
                process=process,
                exit_timeout=_exit_timeout(spec.args),
            )
            try:
                handle.process.wait_started()
                wait_ready(handle, spec.started_models, timeout=timeout, on_progress=on_progress)
            except BaseException:
                handle.kill()
                raise
        return handle

    def _private_backends(self, spec: ServerSpec, folder: Path) -> Path:
        folder.mkdir()
        (folder / "python").symlink_to((self.backends / "python").resolve())
        shutil.copytree(
            spec.backend_dir, folder / "vllm", ignore=shutil.ignore_patterns("__pycache__")
        )
        return folder

    def _environment(self, spec: ServerSpec) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not DROPPED_VARIABLES.match(k)}
        return {**ours, **self.environment, **dict(spec.env)}


@dataclass
class ProcessHandle(ServerHandle):
    """A tritonserver process, its descendants, and the supervisor over them."""

    process: Supervised = None  # type: ignore[assignment] # required, but follows defaults
    exit_timeout: float = EXIT_TIMEOUT_SECONDS

    @property
    def server_pid(self) -> int | None:
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

    def stop(self, timeout: float | None = None) -> int | None:
        grace = self.exit_timeout + STOP_MARGIN_SECONDS if timeout is None else timeout
        self.stop_report = self.process.end(grace)
        return self.stop_report.exit_code

    def kill(self) -> None:
        self.stop_report = self.process.end(0.0)


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, given as ``--flag=value`` or as two words; None without it."""
    value = None
    for position, word in enumerate(args):
        name, equals, given = word.partition("=")
        if name == flag:
            value = given if equals else "".join(args[position + 1 : position + 2])
    return value


def _metrics_off(args: Sequence[str]) -> bool:
    return (flag_value(args, "--allow-metrics") or "").lower() in {"false", "0"}


def _exit_timeout(args: Sequence[str]) -> float:
    value = flag_value(args, "--exit-timeout-secs") or ""
    return float(value) if value.isdigit() else EXIT_TIMEOUT_SECONDS


def _difference(environment: Mapping[str, str]) -> dict[str, str | None]:
    changed: dict[str, str | None] = {k: None for k in os.environ if k not in environment}
    changed.update({k: v for k, v in environment.items() if os.environ.get(k) != v})
    return dict(sorted(changed.items()))
