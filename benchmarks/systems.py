"""The systems that are measured, and the servers behind them."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.digest import Figures
from benchmarks.installation import Installation
from benchmarks.load import ROOT, ClientPool, Target
from benchmarks.models import Model
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerLog, ServerSpec
from pytest_vllm_triton.launchers.ports import LOOPBACK, reserved_ports
from pytest_vllm_triton.launchers.process import ProcessLauncher
from pytest_vllm_triton.launchers.redact import Redactor
from pytest_vllm_triton.supervision.client import Supervised

MODEL_NAME = "vllm_model"
STOP_SECONDS = 20.0

#: Our backend; ours4-grpc: with four instances that share one engine.
OURS = re.compile(r"ours(\d*)-(?:grpc|http)")


@dataclass(frozen=True)
class Bench:
    """What all servers of a benchmark have in common.

    Attributes:
        engine_args: vLLM's, the same for all; `disable_log_stats` among them.
        statistics: whether vLLM's statistics are kept and exported.
        work_dir: for model repositories and logs.
    """

    installation: Installation
    model: Model
    engine_args: Mapping[str, Any]
    statistics: bool
    work_dir: Path
    boot_timeout: float


class Server(ABC):
    """One server, behind one or two systems.

    Attributes:
        name: of the server, and the start of its systems' names.
        systems: names of the systems that it is behind.
    """

    name: str
    systems: Sequence[str]

    @abstractmethod
    def start(self) -> None:
        """Return when it is ready; raises ServerFailed otherwise."""

    @abstractmethod
    def measure(self, system: str, pool: ClientPool, streams: int, seconds: float) -> Figures:
        """Put the load on it through this system."""

    @abstractmethod
    def pids(self) -> list[int]:
        """All its processes."""

    @abstractmethod
    def command(self) -> str:
        """How it was started."""

    @abstractmethod
    def stop(self) -> None:
        """End it; harmless when it does not run."""


@dataclass
class TritonServer(Server):
    """A vLLM backend on Triton, over gRPC and over HTTP."""

    bench: Bench
    name: str
    backend_dir: Path
    parameters: Mapping[str, str]
    systems: Sequence[str] = ()
    #: Instances, which share one engine if there are several.
    instances: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    handle: ServerHandle | None = None

    def start(self) -> None:
        installation = self.bench.installation
        launcher = ProcessLauncher(
            installation.tritonserver,
            installation.backends,
            installation.environment,
            self.bench.work_dir,
        )
        parameters = dict(self.parameters)
        if self.instances > 1:
            parameters["SHARED_ENGINE"] = "true"
        if self.bench.statistics:
            parameters.setdefault("REPORT_CUSTOM_METRICS", "true")
        sample = ROOT / "fixtures" / "model_repository" / "vllm_model" / "config.pbtxt"
        config = with_instances(sample.read_text(encoding="utf-8"), self.instances) + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in parameters.items()
        )
        engine_args = {"model": str(self.bench.model.path), **self.bench.engine_args}
        spec = ServerSpec(
            models=(ModelSpec.create(MODEL_NAME, engine_args, config),),
            backend_dir=self.backend_dir,
            env=self.env,
        )
        self.handle = launcher.launch(spec, timeout=self.bench.boot_timeout)

    def measure(self, system: str, pool: ClientPool, streams: int, seconds: float) -> Figures:
        assert self.handle is not None
        endpoints = self.handle.endpoints
        if system.endswith("-grpc"):
            host, _, port = endpoints.grpc.rpartition(":")
            target = Target("triton-grpc", host, int(port), MODEL_NAME)
        else:
            url = urlsplit(endpoints.http)
            target = Target("triton-http", str(url.hostname), url.port or 80, MODEL_NAME)
        return pool.run(target, streams, seconds)

    def pids(self) -> list[int]:
        return [process.pid for process in self.handle.processes()] if self.handle else []

    def command(self) -> str:
        return self.handle.reproduce() if self.handle else ""

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.stop()
            self.handle = None


class SupervisedServer(Server):
    """A server of vLLM's own, under the same supervisor as Triton."""

    def __init__(self, bench: Bench, name: str, env: Mapping[str, str]) -> None:
        self.bench = bench
        self.name = name
        self.systems = (name,)
        self.env = dict(env)
        self.process: Supervised | None = None
        self.arguments: list[str] = []

    def launch(self, arguments: Sequence[str]) -> ServerLog:
        """Start vLLM's Python with these arguments, in the repository's root."""
        self.arguments = [str(self.bench.installation.python), *arguments]
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.bench.work_dir))
        log = folder / "log"
        environment = self.bench.installation.full_environment(
            {"PYTHONPATH": str(ROOT), **self.env}
        )
        self.process = Supervised.start(
            self.arguments, environment, folder, log=log, orphan_grace=4.0
        )
        self.process.wait_started()
        return ServerLog(log, Redactor(environment))

    def wait(self, ready: Callable[[], bool], log: ServerLog) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.bench.boot_timeout
        while not ready():
            if not self.process.is_running() or time.monotonic() > deadline:
                reason = f"{self.name} did not get ready."
                self.stop()
                raise ServerFailed(reason, log.tail(40))
            time.sleep(0.2)

    def pids(self) -> list[int]:
        return self.process.tree() if self.process else []

    def command(self) -> str:
        settings = " ".join(f"{key}={value}" for key, value in self.env.items())
        return " ".join([settings, *self.arguments]).strip()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.end(STOP_SECONDS)


class VllmServe(SupervisedServer):
    """`vllm serve`, with the frontend that `env` selects."""

    port = 0

    def start(self) -> None:
        arguments = ["-m", "benchmarks.vllm_serve", "serve", str(self.bench.model.path)]
        with reserved_ports(1) as ports:
            self.port = ports[0]
            log = self.launch(
                [
                    *arguments,
                    *("--host", LOOPBACK, "--port", str(self.port)),
                    *("--served-model-name", MODEL_NAME),
                    "--disable-uvicorn-access-log",
                    *command_line_flags(self.bench.engine_args),
                ]
            )
            self.wait(self._is_healthy, log)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/health", timeout=2) as got:
                return bool(got.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def measure(self, system: str, pool: ClientPool, streams: int, seconds: float) -> Figures:
        return pool.run(Target("openai", LOOPBACK, self.port, MODEL_NAME), streams, seconds)


class AsyncLlm(SupervisedServer):
    """AsyncLLM in one process, which makes its load itself."""

    def start(self) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = str(Path(folder) / "socket")
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(0.2)
            log = self.launch(["-m", "benchmarks.async_llm_worker", path])
            accepted: list[socket.socket] = []

            def connected() -> bool:
                try:
                    accepted.append(listener.accept()[0])
                except TimeoutError:
                    return False
                return True

            self.wait(connected, log)
        self.connection = accepted[0]
        self.connection.settimeout(self.bench.boot_timeout)
        self.channel = self.connection.makefile("rw", encoding="utf-8")
        try:
            self._ask(
                {
                    "engine_args": {
                        "model": str(self.bench.model.path),
                        **self.bench.engine_args,
                    },
                    "workload": self.bench.model.workload.to_json(),
                }
            )
        except (OSError, ValueError):
            self.stop()
            raise ServerFailed(f"{self.name} did not get ready.", log.tail(40)) from None

    def _ask(self, value: Mapping[str, Any]) -> dict[str, Any]:
        self.channel.write(json.dumps(value) + "\n")
        self.channel.flush()
        answer: dict[str, Any] = json.loads(self.channel.readline())
        return answer

    def measure(self, system: str, pool: ClientPool, streams: int, seconds: float) -> Figures:
        return Figures.from_json(self._ask({"streams": streams, "seconds": seconds}))

    def stop(self) -> None:
        if self.process is not None and hasattr(self, "channel"):
            self.channel.close()
            self.connection.close()
        super().stop()


def with_instances(config: str, instances: int) -> str:
    """A config.pbtxt of one instance, with so many."""
    changed, times = re.subn(r"\bcount: 1\b", f"count: {instances}", config)
    if times != 1:  # else one instance would be measured and called several
        raise ValueError(f"config.pbtxt has 'count: 1' {times} times, not once:\n{config}")
    return changed


def command_line_flags(engine_args: Mapping[str, Any]) -> list[str]:
    """Engine arguments as `vllm serve` takes them."""
    flags: list[str] = []
    for key, value in engine_args.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            # This one is a plain flag in some versions of vLLM.
            if value or key != "disable_log_stats":
                flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def make_servers(
    bench: Bench, systems: Sequence[str], others: Mapping[str, Path], parameters: Mapping[str, str]
) -> list[Server]:
    """The servers that these systems need, in the order in which the systems are named."""
    servers: dict[str, Server] = {}
    for system in systems:
        if system in ("vllm-serve", "vllm-serve-rust"):
            env = {"VLLM_USE_RUST_FRONTEND": "1"} if system.endswith("-rust") else {}
            servers[system] = VllmServe(bench, system, env)
        elif system == "async-llm":
            servers[system] = AsyncLlm(bench, system, {})
        else:
            name = system.rpartition("-")[0]
            known = servers.get(name)
            if isinstance(known, TritonServer):
                known.systems = (*known.systems, system)
            elif match := OURS.fullmatch(system):
                servers[name] = TritonServer(
                    *(bench, name, ROOT / "backend", parameters, (system,)),
                    instances=int(match[1] or 1),
                )
            else:
                servers[name] = TritonServer(bench, name, others[name], {}, (system,))
    return list(servers.values())
