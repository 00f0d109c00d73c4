"""The one rule by which every launcher decides that a server is ready, or never will be."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import httpx

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.growing_file import GrowingFile
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.death import (
    HEALTH_SECONDS,
    POLL_SECONDS,
    ended_by_itself,
    last_lines,
)
from pytest_vllm_triton.launchers.stalled_stub import LOCK_DESTROYED, NOT_HEALTHY, StalledStubWatch
from pytest_vllm_triton.plain_http import plain_client
from pytest_vllm_triton.progress import Progress, silent

#: What Triton and vLLM write on their way, and how it is told to the user.
_STAGES = (
    (re.compile(r'"loading: (?P<model>[^"]+):\d+"'), "loading model {model}"),
    (
        re.compile(r"Initializing a V1 LLM engine|Initializing an LLM engine"),
        "vLLM engine starting",
    ),
    (re.compile(r"Starting to load model"), "vLLM loading the weights"),
    (re.compile(r"GPU KV cache size|CPU KV cache size|KV cache size:"), "vLLM preparing its cache"),
    (re.compile(r"Capturing CUDA graphs|[Ww]arming up model"), "vLLM warming up"),
    (re.compile(r"\"successfully loaded '(?P<model>[^']+)'\""), "model {model} loaded"),
)

#: One log line of Triton; the quoted text escapes line ends.
_LOAD_FAILED = re.compile(r"\"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)\"\s*$")
#: What the Python backend's stub says before it ends; the server may have no more to say after it
#: than that the stub "is not healthy".
_STUB_FAILED = re.compile(r"\"Failed to initialize Python stub: (?P<reason>.*)\"\s*$")
#: vLLM chooses its engine's ports before it listens on them, so another program may be faster.
ENGINE_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_BUSY_PORT = re.compile(r"Socket '[^']+:(?P<port>\d+)' already in use")


class NotReadyInTime(ServerFailed):
    """The server still was on its way when the time was over."""


class PortTaken(ServerFailed):
    """The server found one of its ports in use: try again with others."""


class LoadStumbled(ServerFailed):
    """The load of a model failed by chance, whatever its backend: try again."""


def wait_ready(
    handle: ServerHandle,
    models: Sequence[str],
    *,
    timeout: float,
    progress: Progress = silent,
) -> None:
    """Return when the server and these models are ready.

    Raises ServerFailed as soon as it is known that they never will be: the process ended, or a
    model failed to load. Otherwise after ``timeout`` seconds.
    """
    with StalledStubWatch(handle) as load:
        try:
            _wait_ready(handle, models, timeout, progress)
        except ServerFailed as failure:
            tail = failure.log_tail
            gave_up = load.ended_one or NOT_HEALTHY.search(failure.reason)
            if gave_up or LOCK_DESTROYED in tail or ENGINE_PORT_TAKEN.search(tail):
                raise LoadStumbled(failure.reason, tail) from failure
            raise


def _wait_ready(
    handle: ServerHandle, models: Sequence[str], timeout: float, progress: Progress
) -> None:
    deadline = time.monotonic() + timeout
    watch = _LogWatch(handle, models, progress)
    with plain_client(HEALTH_SECONDS) as client:
        while True:
            running = handle.is_running()  # before the log is read: the last lines count
            watch.look()
            if not running:
                raise ended_by_itself(handle, "before it was ready")
            missing = not_ready(client, handle, models)
            if not missing:
                return
            if time.monotonic() > deadline:
                raise NotReadyInTime(
                    f"The server was not ready after {timeout:g} s: {missing}.",
                    last_lines(handle),
                )
            time.sleep(POLL_SECONDS)


def not_ready(client: httpx.Client, handle: ServerHandle, models: Sequence[str]) -> str:
    """What is missing, in words; "" when all is ready."""
    http = handle.endpoints.http
    try:
        healthy = client.get(f"{http}/v2/health/ready").status_code == 200
        for model in models:
            if client.get(f"{http}/v2/models/{model}/ready").status_code != 200:
                _raise_if_unavailable(client, handle, model)
                return f"model {model!r} is not ready"
        if not healthy:
            return "/v2/health/ready does not answer 200"
        # Triton opens its metrics port last, and ends if it cannot: only then it is up.
        metrics = handle.endpoints.metrics
        if metrics is not None and client.get(metrics).status_code != 200:
            return f"{metrics} does not answer 200"
    except httpx.TransportError as error:
        return f"it does not answer ({type(error).__name__})"
    return ""


def _raise_if_unavailable(client: httpx.Client, handle: ServerHandle, model: str) -> None:
    answer = client.post(f"{handle.endpoints.http}/v2/repository/index", json={})
    if answer.status_code != 200:
        return
    entries: list[dict[str, Any]] = answer.json()
    states = [entry for entry in entries if entry.get("name") == model]
    for entry in states:
        reason = entry.get("reason", "")
        if entry.get("state") == "UNAVAILABLE" and reason and reason != "unloaded":
            raise _load_failed(handle, model, reason)
    if not states:
        known = ", ".join(sorted({str(entry.get("name")) for entry in entries})) or "none"
        raise ServerFailed(f"The server has no model {model!r}; it has: {known}.")


class _LogWatch:
    """Reads what is new in a server's log: progress, and failures that decide the matter."""

    def __init__(self, handle: ServerHandle, models: Sequence[str], progress: Progress) -> None:
        self.handle = handle
        self.models = set(models)
        self.progress = progress
        self.log = None if handle.log is None else GrowingFile(handle.log.path)
        self.stub_said = ""

    def look(self) -> None:
        if self.log is None:
            return
        for content in self.log.new_lines():
            line = self.handle.redactor.text(content)
            self.judge(line)
            self.tell(line)

    def judge(self, line: str) -> None:
        stub = _STUB_FAILED.search(line)
        if stub:
            self.stub_said = stub["reason"]
        failed = _LOAD_FAILED.search(line)
        if failed:
            model = failed["model"].rstrip("/").rpartition("/")[2]
            if model in self.models:
                reason = failed["reason"]
                if "is not healthy" in reason and self.stub_said:
                    reason = f"{reason} {self.stub_said}"
                raise _load_failed(self.handle, model, reason)
        busy = _BUSY_PORT.search(line)
        if busy:
            raise PortTaken(f"Port {busy['port']} is already in use.", line)

    def tell(self, line: str) -> None:
        for pattern, words in _STAGES:
            found = pattern.search(line)
            if found:
                self.progress(words.format(**found.groupdict()))


def _load_failed(handle: ServerHandle, model: str, reason: str) -> ServerFailed:
    reason = handle.redactor.text(reason).replace("\\n", "\n").strip()
    return ServerFailed(f"Model {model!r} failed to load: {reason}", last_lines(handle))
