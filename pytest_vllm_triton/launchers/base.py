"""What every launcher shares: the server's specification, the handle on it, its log.

Part of what a test session imports early, so it imports nothing third-party.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pytest_vllm_triton.launchers.redact import MASK, Redactor, is_secret
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.supervision.stop_report import StopReport

if TYPE_CHECKING:
    from pytest_vllm_triton.gpus import Gpu
    from pytest_vllm_triton.launchers.load_slots import LoadSlots

#: The ``shm_domain`` of servers that use this host's own /dev/shm.
HOST_SHM = "host"

_TABLE = re.compile(r"[+|]")
_HELP = re.compile(r"Usage: |\s+--|\t|[A-Z][A-Za-z/ ]*:$")


@dataclass(frozen=True)
class ModelSpec:
    """One model of a model repository, byte for byte as it will be written.

    Attributes:
        name: the model's name and the name of its folder.
        model_json: the text of ``<version>/model.json``; it may be malformed on purpose. None: no
            such file is written.
        config: the text of ``config.pbtxt``. "": no such file is written.
        version: the version folder.
        files: more files, by their paths relative to the model's folder.
    """

    name: str
    model_json: str | None = None
    config: str = ""
    version: int = 1
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        name: str,
        engine_args: Mapping[str, Any],
        config: str = "",
        *,
        version: int = 1,
        files: Mapping[str, bytes] | None = None,
    ) -> ModelSpec:
        """A model whose model.json holds these engine arguments."""
        return cls(
            name=name,
            model_json=json.dumps(engine_args, indent=2, ensure_ascii=False) + "\n",
            config=config,
            version=version,
            files=files or {},
        )

    @property
    def engine_args(self) -> dict[str, Any]:
        """The engine arguments in ``model_json``; raises ValueError where it is no JSON object."""
        value = json.loads(self.model_json) if self.model_json is not None else {}
        if not isinstance(value, dict):
            raise ValueError(f"model.json of {self.name!r} is not a JSON object")
        return value


@dataclass(frozen=True)
class ServerSpec:
    """All that decides what a server is.

    Attributes:
        models: the model repository's content.
        backend_dir: the vLLM backend under test. It is copied, without ``__pycache__``, so that a
            run keeps what it started with and the source folder is never written to. None: the
            one that the server's image holds.
        args: more tritonserver flags. Those that the launcher needs for itself are refused.
        env: more environment variables of the server.
        load: the models loaded at start in explicit mode. None: all of them.
        control_mode: Triton's model control mode.
        control_mode_as_two_words: as `--flag value`, and not as `--flag=value`.
        shm_prefix: the prefix of the server's shared-memory regions. None: a unique one is made.
        shm_domain: that of another server whose /dev/shm this one is to share. None: no matter.
    """

    models: tuple[ModelSpec, ...]
    backend_dir: Path | None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    load: tuple[str, ...] | None = None
    control_mode: Literal["explicit", "none"] = "explicit"
    control_mode_as_two_words: bool = False
    shm_prefix: str | None = None
    shm_domain: str | None = None

    @property
    def started_models(self) -> tuple[str, ...]:
        """The models that must be ready before the server counts as ready."""
        if self.load is None or self.control_mode == "none":
            return tuple(model.name for model in self.models)
        return self.load


def new_shm_prefix() -> str:
    """A prefix of shared-memory regions that no other server has."""
    return f"pvt_{secrets.token_hex(6)}_"


@dataclass(frozen=True)
class Endpoints:
    """Where a server listens.

    Attributes:
        http: base URL, such as ``http://127.0.0.1:8000``.
        grpc: host and port, such as ``127.0.0.1:8001``.
        metrics: URL of the Prometheus page; None where there is none.
    """

    http: str
    grpc: str
    metrics: str | None = None


class ServerLog:
    """A server's log file, readable while it grows.

    Args:
        redactor: takes secrets out of what is read; None: the file has none.
    """

    def __init__(self, path: Path, redactor: Redactor | None = None) -> None:
        self.path = path
        self.redactor = redactor or Redactor()

    def position(self) -> int:
        """The log's present length in bytes: pass it to :meth:`read` later."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, since: int = 0) -> str:
        """The log's text from byte ``since`` on."""
        try:
            with self.path.open("rb") as file:
                file.seek(since)
                return self.redactor.text(file.read().decode("utf-8", "replace"))
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = 30) -> str:
        """The last ``lines`` lines that are not empty and not part of Triton's wide tables."""
        text = self.read()
        noise = _TABLE
        if "\nUsage: tritonserver" in f"\n{text}":  # what a wrong flag is answered with
            noise = re.compile(f"{_TABLE.pattern}|{_HELP.pattern}")
        told = [line.rstrip() for line in text.splitlines()]
        told = [line for line in told if line and not noise.match(line)]
        return "\n".join(told[-lines:])


class ProcessorTime(Protocol):
    """What psutil tells of a process's time on processors, as far as the suite looks at it."""

    @property
    def user(self) -> float:
        """Seconds."""
        ...

    @property
    def system(self) -> float:
        """Seconds that the kernel worked for it."""
        ...


class Resident(Protocol):
    """What psutil tells of a process's memory, as far as the suite looks at it."""

    @property
    def rss(self) -> int:
        """Bytes in main memory."""
        ...


class ServerProcess(Protocol):
    """A process of a server, as far as the suite looks at it; psutil.Process is one.

    Once it has ended, its methods may raise psutil.Error (NoSuchProcess, or ZombieProcess).
    """

    @property
    def pid(self) -> int:
        """As the server's own processes see it: in a container that is not this host's number."""
        ...

    def name(self) -> str: ...

    def cmdline(self) -> list[str]: ...

    def status(self) -> str:
        """In psutil's words."""
        ...

    def num_fds(self) -> int:
        """How many file descriptors it has open."""
        ...

    def num_threads(self) -> int:
        """How many threads it has."""
        ...

    def memory_info(self) -> Resident:
        """How much memory it holds."""
        ...

    def cpu_times(self) -> ProcessorTime:
        """How long it has been on processors."""
        ...

    def is_running(self) -> bool:
        """Whether it is there; a zombie is."""
        ...

    def kill(self) -> None: ...

    def children(self, recursive: bool = False) -> Sequence[ServerProcess]: ...


@dataclass(eq=False)
class ServerHandle(ABC):
    """A server, whichever launcher gave it.

    Attributes:
        endpoints: where it listens.
        log: its log; None where it cannot be read (attached servers).
        owned: whether the suite started it, and so may stop it, load into it, or kill it.
        spec: what it was started from; None for attached servers.
        boot_seconds: from the start to ready.
        model_repository: the folder it serves; None where it cannot be seen.
        backend_folder: its vLLM backend, as this host sees the folder; None where it cannot.
        backend_path: the same folder as the server sees it; "" where that is not known.
        metrics_address: host and port of its metrics page, also where that is off; "": not known.
        shm_prefix: the prefix of its shared-memory regions, where known.
        shm_domain: equal for servers that share one /dev/shm; "" where it is not known.
        command: the command line that started it; empty for attached servers.
        environment: what its environment adds to ours (None: taken out), to reproduce it by hand.
        redactor: takes the server's secrets out of what is shown.
        stop_report: what :meth:`stop` or :meth:`kill` found; None while it runs.
        load_slots: for loads of models, of which others wait for one; None: no load waits.
        load_seconds: seconds that a load or unload of a model may take: it boots an engine.
    """

    endpoints: Endpoints
    log: ServerLog | None = None
    owned: bool = True
    spec: ServerSpec | None = None
    boot_seconds: float = 0.0
    model_repository: Path | None = None
    backend_folder: Path | None = None
    backend_path: str = ""
    metrics_address: str = ""
    shm_prefix: str | None = None
    shm_domain: str = ""
    command: list[str] = field(default_factory=list)
    environment: dict[str, str | None] = field(default_factory=dict)
    redactor: Redactor = field(default_factory=Redactor)
    stop_report: StopReport | None = None
    load_slots: LoadSlots | None = None
    load_seconds: float = 240.0

    def share_loads(self, slots: LoadSlots, seconds: float) -> None:
        """Let loads of models wait for a slot, as those of the session's other workers do.

        Args:
            slots: the session's; a launcher knows nothing of them.
            seconds: that a boot may take, and so a load at least: it boots an engine, too.
        """
        self.load_slots = slots
        self.load_seconds = max(self.load_seconds, seconds)

    @abstractmethod
    def host_pid(self) -> int | None:
        """The process id of tritonserver on this host; None where it is not ours to know.

        It is for looking only: `main_process` and `send_signal` work for containers, too.
        """

    @abstractmethod
    def is_running(self) -> bool:
        """Whether the server process lives (attached: whether it answers)."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """The server's exit status once it has ended by itself or was stopped; else None."""

    @abstractmethod
    def processes(self) -> Sequence[ServerProcess]:
        """The server and all its descendants, orphaned ones too; empty for attached servers."""

    @abstractmethod
    def main_process(self) -> ServerProcess | None:
        """That of tritonserver itself; None where it has ended or cannot be seen."""

    @abstractmethod
    def send_signal(self, number: signal.Signals) -> None:
        """Send tritonserver a signal, if it still runs."""

    @abstractmethod
    def regions_of(self, processes: Iterable[ServerProcess]) -> set[str]:
        """Names of the shared-memory regions that these processes of it have mapped or open."""

    @abstractmethod
    def all_regions(self) -> set[str]:
        """Names of all that is in the /dev/shm that the server uses, whosever it is."""

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that it sees, in the order in which it counts them; none if not known."""
        return ()

    def gpu_names(self) -> list[str]:
        """What the variable CUDA_VISIBLE_DEVICES of a server like this one calls its `gpus`."""
        return [str(gpu.index) for gpu in self.gpus()]

    def gpu_memory(
        self, processes: Iterable[ServerProcess], gpus: Sequence[Gpu] | None = None
    ) -> list[int]:
        """Bytes that these processes of it hold of each of the GPUs (default: of its `gpus`).

        Raises:
            MemoryUnknown: the driver does not tell.
        """
        from pytest_vllm_triton.gpus import MemoryUnknown, memory_of

        own, living = self.gpus(), self.processes()
        # An engine may rightly hold nothing, as after an unload. Not so the server: tritonserver
        # itself, which is one of its processes, has a CUDA context on each GPU that it sees. So if
        # they all hold nothing, the driver does not speak of them: it knows the processes of a
        # container by other ids than we do who run in one, and WSL2's tells no sizes.
        if own and living and not sum(memory_of(self._host_pids(living), own)):
            raise MemoryUnknown(
                f"the driver of {own[0].name} says of none of the server's processes that it holds "
                "memory: perhaps this runs in a container, or on WSL2"
            )
        return memory_of(self._host_pids(processes), own if gpus is None else gpus)

    def _host_pids(self, processes: Iterable[ServerProcess]) -> list[int]:
        """The process ids by which this host, and so its GPU driver, knows these processes."""
        return [process.pid for process in processes]

    def regions_left(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are still in the /dev/shm that the server uses."""
        return sorted(self.all_regions().intersection(names))

    @property
    def leaves_shm_when_killed(self) -> bool:
        """Whether a SIGKILL of tritonserver leaves shared memory, whatever the backend does.

        So in a container: all its processes end at once, and none is left that could clean up. It
        does not matter where the container's own /dev/shm ends with it.
        """
        return False

    @abstractmethod
    def stop(self, timeout: float | None = None) -> int | None:
        """End the server gracefully, then by force after ``timeout``; its exit code.

        Whatever it left behind (processes, shared memory) is removed, and told in
        ``stop_report``. Calling it again is harmless.
        """

    @abstractmethod
    def kill(self) -> None:
        """End the server and all its descendants at once (SIGKILL), and sweep after them."""

    def reproduce(self) -> str:
        """A shell command that starts the same server by hand; "" for attached servers.

        It does not show secrets.
        """
        import shlex

        if not self.command:
            return ""
        unset = [f"-u {shlex.quote(k)}" for k, v in self.environment.items() if v is None]
        added = [
            f"{name}={MASK if is_secret(name) else shlex.quote(self.redactor.text(value))}"
            for name, value in self.environment.items()
            if value is not None
        ]
        prefix = ["env", *unset, *added] if unset or added else []
        words = [shlex.quote(self.redactor.text(word)) for word in self.command]
        return " ".join([*prefix, *words])

    def __enter__(self) -> ServerHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Launcher(Protocol):
    """A way to get a server."""

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        progress: Progress = silent,
    ) -> ServerHandle:
        """A server that is ready; raises ServerFailed or UserError, leaving nothing behind."""
        ...

    def close(self) -> None:
        """Give back what the launcher holds beside its servers; harmless when called again."""
        ...
