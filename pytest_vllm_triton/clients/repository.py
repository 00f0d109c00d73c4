"""Triton's model repository API on a repository whose folder we may write to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pytest_vllm_triton.clients.http import HttpAnswer, HttpClient
from pytest_vllm_triton.expect import Violation, Words
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle
from pytest_vllm_triton.launchers.readiness import ENGINE_PORT_TAKEN
from pytest_vllm_triton.launchers.repository import write_model
from pytest_vllm_triton.launchers.stalled_stub import ATTEMPTS, NOT_HEALTHY, StalledStubWatch
from pytest_vllm_triton.transcript import Transcript


@dataclass(frozen=True)
class ControlAnswer:
    """What a load or unload request brought.

    Attributes:
        what: "load" or "unload".
        answer: the server's answer, as it came.
        error: the error text, None when it succeeded.
    """

    what: str
    answer: HttpAnswer

    @property
    def error(self) -> str | None:
        return None if self.answer.status == 200 else self.answer.error or self.answer.text

    def ok(self) -> None:
        """Nothing, when it succeeded.

        Raises:
            Violation: it failed.
        """
        if self.error is not None:
            raise Violation(
                self.what, Words("HTTP 200"), Words(f"{self.answer.status}: {self.error}")
            )

    def failed(self) -> str:
        """The error text.

        Raises:
            Violation: it succeeded.
        """
        if self.error is None:
            raise Violation(self.what, Words("an error"), Words(f"HTTP {self.answer.status}"))
        return self.error


class ModelRepository:
    """Adds models to a running server's repository, and takes them away again.

    Args:
        server: a server whose repository can be seen.
        transcript: where requests and answers are noted.
    """

    def __init__(self, server: ServerHandle, transcript: Transcript | None = None) -> None:
        assert server.model_repository is not None
        self._http = HttpClient(server.endpoints.http, "", transcript, deadline=server.load_seconds)
        self._folder = server.model_repository
        self._server = server
        self._added: list[str] = []

    def add(self, spec: ModelSpec) -> None:
        """Write a model into the repository, replacing what this object wrote under that name."""
        if spec.name in self._added:
            shutil.rmtree(self._folder / spec.name)
        else:
            self._added.append(spec.name)
        write_model(spec, self._folder)

    def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> ControlAnswer:
        """Load a model; the answer comes when it is ready or has failed.

        Asked for again where Triton gave up the model's stub (see `stalled_stub`), and once where a
        port that the engine had chosen was taken, which may be in the log only.
        """
        slots, log = self._server.load_slots, self._server.log
        with slots.acquire() if slots is not None else nullcontext():
            since = log.position() if log is not None else 0
            answer = self._load_patiently(name, parameters)
            if answer.error is not None:
                told = answer.error + (log.read(since) if log is not None else "")
                if ENGINE_PORT_TAKEN.search(told):
                    answer = self._load_patiently(name, parameters)
        return answer

    def _load_patiently(self, name: str, parameters: Mapping[str, Any] | None) -> ControlAnswer:
        for _ in range(ATTEMPTS):
            with StalledStubWatch(self._server) as watch:
                answer = self._load(name, parameters)
            if not watch.ended_one and not NOT_HEALTHY.search(answer.error or ""):
                break
        return answer

    def _load(self, name: str, parameters: Mapping[str, Any] | None) -> ControlAnswer:
        body = {"parameters": dict(parameters)} if parameters else {}
        path = f"/v2/repository/models/{name}/load"
        return ControlAnswer("load", self._http.request("POST", path, json_body=body))

    def unload(self, name: str) -> ControlAnswer:
        """Unload a model; the answer may come before its last requests have ended."""
        path = f"/v2/repository/models/{name}/unload"
        return ControlAnswer("unload", self._http.request("POST", path, json_body={}))

    def index(self) -> dict[str, dict[str, Any]]:
        """State and reason of every model, by name."""
        entries = self._http.request("POST", "/v2/repository/index", json_body={}).json()
        return {entry["name"]: entry for entry in entries}

    def is_ready(self, name: str) -> bool:
        """Whether the server says that the model can be asked."""
        return self._http.get(f"/v2/models/{name}/ready").status == 200

    def close(self) -> None:
        """Unload and remove every model that was added; what has ended has none loaded."""
        for name in self._added:
            if self._server.exit_code() is None:
                self.unload(name)
            shutil.rmtree(self._folder / name, ignore_errors=True)
        self._added.clear()
        self._http.close()
