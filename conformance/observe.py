"""Looking at a server from outside: its processes, shared memory and open files, and the record of
what was seen in an experiment that several checks share."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, Generation, GrpcClient
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.expect import Violation, Words
from pytest_vllm_triton.launchers.base import ServerHandle, ServerProcess
from pytest_vllm_triton.verdicts import untested

STUB = "triton_python_backend_stub"
# vLLM names its processes so; on one GPU the worker runs inside the engine's process.
ENGINE = re.compile(r"VLLM::|EngineCore")
# What gRPC calls a request of something that is not there, or that the model cannot do.
CLIENTS_MISTAKE = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")
# What the health check answers (ENABLE_VLLM_HEALTH_CHECK).
UNHEALTHY = "Model is unavailable due to unhealthy vLLM engine"
ENGINE_CORE = re.compile(r"EngineCore")
WORKER = re.compile(r"VLLM::Worker")
# What a part of an experiment may end with: an error, or that it cannot be done here.
_ENDINGS = (Exception, pytest.skip.Exception)
# Those that say nothing of the backend: no Docker, no disk, a wrong option, or not possible here.
_NO_VERDICT = (OSError, RuntimeError, UserError, psutil.Error, pytest.skip.Exception)


class Seen:
    """What an experiment saw, by name.

    The experiment never fails: what goes wrong is kept, and fails the checks that ask for it, or is
    their error where it is not the backend's.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._endings: dict[str, BaseException] = {}
        self._broken_off: dict[str, BaseException] = {}

    def __setitem__(self, name: str, fact: Any) -> None:
        self._facts[name] = fact

    def __getitem__(self, name: str) -> Any:
        if name in self._facts:
            return self._facts[name]
        if name in self._endings:
            raise self._endings[name]
        for step, ending in self._broken_off.items():
            # Of several, those that are the backend's go first: nothing hides a failure.
            if not isinstance(ending, _NO_VERDICT):
                reason = f"the experiment broke off at '{step}': {ending}"
                raise Violation(name, Words("to be seen"), Words(reason))
        for ending in self._broken_off.values():
            raise ending
        raise Violation(name, Words("to be seen"), Words("the experiment did not come that far"))

    def look(self, name: str, see: Callable[[], Any]) -> None:
        """Keep what `see` returns or raises."""
        try:
            self._facts[name] = see()
        except _ENDINGS as ending:
            self._endings[name] = ending

    def step(self, act: Callable[[], None]) -> bool:
        """A part of the experiment: what it raises stands for all that it did not get to see.

        Returns whether it came to its end.
        """
        try:
            act()
        except _ENDINGS as ending:
            self._broken_off[act.__name__.replace("_", " ")] = ending
            return False
        return True


T = TypeVar("T")


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


def first_of(responses: Iterable[T]) -> T:
    """The first response of a stream.

    Raises:
        Violation: it ended without any.
    """
    for response in responses:
        return response
    raise Violation(
        "first response of the stream", Words("one"), Words("the stream ended without a response")
    )


def until(is_so: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until it is so; None if it is not before the deadline."""
    started = time.monotonic()
    while True:
        so = is_so()
        took = time.monotonic() - started
        if so:
            return took
        if took > seconds:
            return None
        time.sleep(0.05)


@contextlib.contextmanager
def nothing_in_the_log(server: ServerHandle, secret: str) -> Iterator[None]:
    """What is done in the block leaves no line in the server's log that tells the secret."""
    if server.log is None:
        untested("the server's log cannot be read")
    since = server.log.position()
    yield
    expect.lacks("log since the request", server.log.read(since), secret)


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


class Background:
    """Sends the same request again and again while something else happens.

    Use it as a context manager; `answers` is complete afterwards.
    """

    def __init__(self, client: GrpcClient, request: GenerateRequest) -> None:
        self.answers: list[Generation | Exception] = []
        self._client = client
        self._request = request
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.answers.append(self._client.generate(self._request))
            except Exception as error:
                self.answers.append(error)
                return

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def texts(self) -> set[str]:
        """The distinct texts that came; an error is shown as itself."""
        return {text_or_error(answer) for answer in self.answers}


def text_or_error(answer: Generation | Exception) -> str:
    """The text of an answer, or in its place what went wrong."""
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {answer}"
    return answer.text if answer.error is None and answer.data else f"error: {answer.error}"


def at_once(
    send: Callable[[GenerateRequest], Generation], requests: Iterable[GenerateRequest], threads: int
) -> list[str]:
    """Send the requests from this many threads; the texts, or errors, in the order of requests."""

    def one(request: GenerateRequest) -> str:
        try:
            return text_or_error(send(request))
        except Exception as error:
            return text_or_error(error)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, requests))
