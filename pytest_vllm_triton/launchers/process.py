"""Start a tritonserver of this host as a process, under a supervisor that nothing can outlive."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.launchers import supervisor
from pytest_vllm_triton.launchers.base import (
    Endpoints,
    Progress,
    ServerHandle,
    ServerLog,
    ServerSpec,
    StopReport,
)
from pytest_vllm_triton.launchers.ports import LOOPBACK, reserved_ports
from pytest_vllm_triton.launchers.readiness import TAIL_LINES, PortTaken, wait_ready
from pytest_vllm_triton.launchers.repository import write_repository

if TYPE_CHECKING:
    import psutil

#: Triton's own default of --exit-timeout-secs; a graceful stop may take that long.
EXIT_TIMEOUT_SECONDS = 30
#: How long a server may live on when pytest has died: SIGTERM, then SIGKILL after this.
ORPHAN_GRACE_SECONDS = 4.0
#: The python backend gives up on a stub that is silent this long; importing vLLM takes a while.
STUB_TIMEOUT_SECONDS = 300
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
        for flag in spec.args:
            if flag.partition("=")[0] in OWN_FLAGS:
                raise UserError(
                    f"The launcher itself sets tritonserver's {flag.partition('=')[0]}."
                )
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
            channel = _Channel.open(command, environment, folder, prefix)
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
                channel=channel,
                exit_timeout=_exit_timeout(spec.args),
            )
            try:
                handle.wait_started()
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

    channel: _Channel = None  # type: ignore[assignment] # always given; after fields with defaults
    exit_timeout: float = EXIT_TIMEOUT_SECONDS

    def wait_started(self) -> None:
        self.channel.wait_for("started", "failed", timeout=30.0)
        reason = self.channel.facts.get("reason")
        if reason is not None:
            raise ServerFailed(f"The server could not be started: {reason}")
        if "pid" not in self.channel.facts:
            raise ServerFailed("The server's supervisor did not start.", self.channel.own_log())

    @property
    def server_pid(self) -> int | None:
        return self.channel.facts.get("pid")

    def exit_code(self) -> int | None:
        self.channel.receive()
        code: int | None = self.channel.facts.get("code")
        return code

    def is_running(self) -> bool:
        self.channel.receive()
        facts = self.channel.facts
        if "pid" not in facts or "code" in facts or self.stop_report is not None:
            return False
        return bool(self.channel.alive or _lives(facts["pid"]))

    def processes(self) -> list[psutil.Process]:
        import psutil

        self.channel.receive()
        root = self.channel.supervisor.pid if self.channel.alive else self.server_pid
        found = []
        if root is not None and self.stop_report is None:
            for pid in supervisor.descendants(root):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        return found

    def stop(self, timeout: float | None = None) -> int | None:
        grace = self.exit_timeout + 10.0 if timeout is None else timeout
        return self._end({"do": "stop", "grace": grace}, grace)

    def kill(self) -> None:
        self._end({"do": "kill"}, 0.0)

    def _end(self, order: dict[str, Any], grace: float) -> int | None:
        with self.channel.ending:
            if self.stop_report is None:
                self.channel.send(order)
                self.channel.wait_for("done", timeout=grace + 20.0)
                self.stop_report = self.channel.close(grace)
            return self.stop_report.exit_code


class _Channel:
    """The supervisor's process, and the connection to it.

    Attributes:
        facts: all that the supervisor has said so far.
        alive: whether the connection still stands.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], connection: socket.socket, folder: Path
    ) -> None:
        self.supervisor = process
        self.connection = connection
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self.events: set[str] = set()
        self.alive = True
        self.ending = threading.RLock()
        self._reading = threading.RLock()
        self._partial = b""

    @classmethod
    def open(
        cls, command: list[str], environment: dict[str, str], folder: Path, prefix: str
    ) -> _Channel:
        config = supervisor.Config(
            command=command,
            environment=environment,
            log=str(folder / "triton.log"),
            state=str(folder / "supervisor-state.json"),
            shm_prefix=prefix,
            shm_before=sorted(supervisor.list_regions()),
            parent=os.getpid(),
            orphan_grace=ORPHAN_GRACE_SECONDS,
        )
        path = folder / "supervisor.json"
        path.touch(mode=0o600)  # it holds the whole environment
        path.write_text(json.dumps(config._asdict()))
        ours, theirs = socket.socketpair()
        with theirs, (folder / "supervisor.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(path)],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is for pytest to decide on
            )
        return cls(process, ours, folder)

    def send(self, order: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(order).encode() + b"\n")

    def receive(self, timeout: float = 0.0) -> None:
        """Take in what the supervisor has said; waits at most ``timeout`` for the first of it."""
        with self._reading:
            while self.alive:
                poll = select.poll()
                poll.register(self.connection, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    return
                timeout = 0.0
                try:
                    data = self.connection.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    self.alive = False
                *lines, self._partial = (self._partial + data).split(b"\n")
                for line in lines:
                    fact = json.loads(line)
                    self.events.add(fact.pop("event"))
                    self.facts.update(fact)

    def wait_for(self, *events: str, timeout: float) -> None:
        """Until one of these was said, the supervisor is gone, or the time is over."""
        deadline = time.monotonic() + timeout
        while self.alive and not self.events.intersection(events):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.receive(min(left, 1.0))

    def close(self, grace: float) -> StopReport:
        """Make sure that nothing is left, whatever became of the supervisor."""
        if "done" in self.events:
            report = StopReport(
                exit_code=self.facts.get("code"),
                forced=self.facts["forced"],
                orphans=tuple(self.facts["orphans"]),
                swept=tuple(self.facts["swept"]),
            )
        else:
            report = self._close_by_hand(grace)
        self.connection.close()
        self.alive = False
        try:
            self.supervisor.wait(5)
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()
        return report

    def _close_by_hand(self, grace: float) -> StopReport:
        """The supervisor was killed, or hangs: do its work from here."""
        self.supervisor.kill()  # the kernel sends SIGTERM to the server now, if it has not yet
        self.supervisor.wait()
        server = self.facts.get("pid")
        if server is None:
            return StopReport(exit_code=None, forced=True)
        deadline = time.monotonic() + grace
        while _lives(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        forced = _lives(server)
        left = supervisor.session_family(server)
        orphans = tuple(f"{pid} {supervisor.command_line(pid)}" for pid in left if pid != server)
        regions = self._regions()
        regions.observe(regions.unknown(), left)
        supervisor.kill_all(lambda: supervisor.session_family(server))
        swept = tuple(regions.sweep())
        return StopReport(self.facts.get("code"), forced, () if forced else orphans, swept)

    def _regions(self) -> supervisor.Regions:
        config = json.loads((self.folder / "supervisor.json").read_text())
        regions = supervisor.Regions(config["shm_prefix"], set(config["shm_before"]))
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((self.folder / "supervisor-state.json").read_text())
            regions.ours.update(state["ours"])
            regions.foreign.update(state["foreign"])
        return regions

    def own_log(self) -> str:
        return ServerLog(self.folder / "supervisor.log").tail(TAIL_LINES)


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


def _lives(pid: int) -> bool:
    process = supervisor.all_processes().get(pid)
    return process is not None and process.state not in "ZX"
