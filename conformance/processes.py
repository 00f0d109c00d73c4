"""A server seen from outside: its processes, shared memory and open files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from pytest_vllm_triton.launchers.base import ServerHandle, ServerProcess
from pytest_vllm_triton.verdicts import untested

from .waits import until

STUB = "triton_python_backend_stub"
# vLLM names its processes so; on one GPU the worker runs inside the engine's process.
ENGINE = re.compile(r"VLLM::|EngineCore")
ENGINE_CORE = re.compile(r"EngineCore")
WORKER = re.compile(r"VLLM::Worker")


def kill(processes: Iterable[ServerProcess]) -> None:
    """SIGKILL to each; with one of them others may be gone already."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_engine(stubs: Iterable[ServerProcess], seconds: float) -> None:
    """SIGKILL to the engine of these stubs, and up to so many seconds for it to be gone."""
    children = [child for stub in stubs for child in stub.children(recursive=True)]
    engine = [process for process in children if is_engine(process)]
    if not engine:
        untested("no process of the server looks like one of vLLM's engine")
    kill(engine)
    until(lambda: not living(engine), seconds)


def engine_process(server: ServerHandle) -> ServerProcess:
    """The process of vLLM's engine, the parent of its workers."""
    named = [process for process in server.processes() if is_engine(process, ENGINE_CORE)]
    if not named:
        untested(f"no process called {ENGINE_CORE.pattern} among those of the server")
    return named[0]


def described(process: ServerProcess) -> str:
    """``"pid name"``, for a report."""
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {process.name()}"
    return str(process.pid)


def is_stub(process: ServerProcess, model: str = "") -> bool:
    """Whether it is a stub of Triton's Python backend (of this model)."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        ours = not model or bool(stub_instance(process, model))
        return bool(words) and words[0].endswith(STUB) and ours
    return False


def serving_pids(server: ServerHandle, model: str) -> set[int]:
    """Ids of the stubs and engines of this model; those of others come and go."""
    stubs = [process for process in server.processes() if is_stub(process, model)]
    children = [child for stub in stubs for child in stub.children(recursive=True)]
    return {process.pid for process in (*stubs, *filter(is_engine, children))}


def stub_instance(process: ServerProcess, model: str) -> str:
    """Triton's name of the model's instance that the stub runs, as "model_0_1"; "" if none."""
    name = re.compile(rf"{re.escape(model)}(_\d+)+")
    with contextlib.suppress(psutil.Error):
        return next((word for word in process.cmdline() if name.fullmatch(word)), "")
    return ""


def is_engine(process: ServerProcess, pattern: re.Pattern[str] = ENGINE) -> bool:
    """Whether vLLM calls it a process of an engine."""
    with contextlib.suppress(psutil.Error):
        return bool(pattern.search(" ".join([process.name(), *process.cmdline()])))
    return False


def living(processes: Iterable[ServerProcess]) -> list[str]:
    """Those that still run (a zombie does not), described."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(described(process))
    return found


@dataclass(frozen=True)
class Footprint:
    """What a server occupies.

    Attributes:
        server: whose it is.
        processes: it and its descendants.
        regions: shared memory that they have mapped, or that is named as the server's.
        files: number of tritonserver's open file descriptors.
    """

    server: ServerHandle
    processes: frozenset[ServerProcess]
    regions: frozenset[str]
    files: int

    @classmethod
    def of(cls, server: ServerHandle) -> Footprint:
        processes = server.processes()
        files = 0
        with contextlib.suppress(psutil.Error):
            main = server.main_process()
            files = 0 if main is None else main.num_fds()
        regions = server.regions_of(processes)
        if server.shm_prefix:
            regions |= {n for n in server.all_regions() if n.startswith(server.shm_prefix)}
        return cls(server, frozenset(processes), frozenset(regions), files)

    def beyond(self, other: Footprint) -> Footprint:
        """What this one has and the other has not."""
        return Footprint(
            self.server,
            self.processes - other.processes,
            self.regions - other.regions,
            self.files - other.files,
        )

    def left(self) -> list[str]:
        """Processes and regions of it that are still there."""
        return living(self.processes) + self.server.regions_left(self.regions)


@dataclass(frozen=True)
class Holdings:
    """What a process holds: open files, threads, and bytes of main memory."""

    files: int = 0
    threads: int = 0
    memory: int = 0

    @classmethod
    def of(cls, process: ServerProcess) -> Holdings:
        return cls(process.num_fds(), process.num_threads(), process.memory_info().rss)
