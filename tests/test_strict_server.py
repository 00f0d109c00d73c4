"""What is kept when the strict server does not boot again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conformance.experiments import deaths
from conformance.experiments.deaths import Deaths
from conformance.record import Seen
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.expect import Violation


class Client:
    """Stands for all kinds of clients."""

    def __init__(self, *_: object, **__: object) -> None:
        self.closed = False

    def generate(self, request: object) -> SimpleNamespace:
        return SimpleNamespace(text="alpha")

    def load(self, name: str, parameters: object) -> SimpleNamespace:
        return SimpleNamespace(error="no room")

    def close(self) -> None:
        self.closed = True


class Strict:
    """A strict server that boots once; its model does not load a second time."""

    model, config = "vllm_model", "{}"

    def __init__(self) -> None:
        self.boots = 0
        self._handle: Any = None

    @property
    def handle(self) -> Any:
        if self._handle is None:
            self.boots += 1
            if self.boots > 1:
                raise ServerFailed("it does not boot")
            endpoints = SimpleNamespace(http="", grpc="")
            self._handle = SimpleNamespace(
                endpoints=endpoints, log=None, owned=True, exit_code=lambda: -9
            )
        return self._handle

    def repository(self) -> Client:
        return Client()

    def discard(self) -> None:
        self._handle = None


class TwoDeaths(Deaths):
    """With steps that need no server."""

    def engine_dies_while_streaming(self) -> None:
        self.seen["early"] = 1

    def worker_dies_with_health_check(self) -> None:
        self.seen["error of the load"] = self._load_or_reboot("True")


def test_facts_outlive_a_boot_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "GrpcClient", Client)
    monkeypatch.setattr(deaths, "HttpClient", Client)
    strict: Any = Strict()
    shared: Any = SimpleNamespace(endpoints=SimpleNamespace(grpc=""))
    experiment: Any = TwoDeaths(strict, shared)
    seen: Seen = experiment.run()
    assert seen["early"] == 1
    with pytest.raises(Violation, match="it does not boot"):
        _ = seen["error of the load"]
    assert strict.boots == 2
    assert not experiment.crashed
    clients = (experiment.bystander, experiment.repository, experiment.http, experiment.grpc)
    assert all(client.closed for client in clients)
