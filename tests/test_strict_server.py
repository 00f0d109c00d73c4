"""The strict server, whose model loads or not, and what is kept when it does not boot again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance import strict_server
from conformance.experiments import deaths
from conformance.experiments.deaths import Deaths
from conformance.record import Seen
from conformance.strict_server import StrictServer
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


class Harness:
    """Boots servers that live until they are killed.

    Attributes:
        servers: those that are not forgotten.
    """

    model_name = "vllm_model"

    def __init__(self, work_dir: Path) -> None:
        self.provision = SimpleNamespace(work_dir=work_dir)
        self.servers: list[Any] = []

    def shared_server(self) -> SimpleNamespace:
        return SimpleNamespace(shm_prefix="one", shm_domain="host")

    def server_spec(self, **fields: object) -> object:
        return fields

    def boot(self, spec: object, purpose: str) -> Any:
        self.servers.append(SimpleNamespace(kill=lambda: None))
        return self.servers[-1]

    def forget(self, server: object) -> None:
        self.servers.remove(server)


def test_a_server_booted_anew_loads_its_model_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Client] = []
    errors = iter(["no room", None])

    class Repository(Client):
        def __init__(self, *_: object) -> None:
            super().__init__()
            opened.append(self)

        def load(self, name: str, parameters: object) -> SimpleNamespace:
            return SimpleNamespace(error=next(errors))

    monkeypatch.setattr(strict_server, "ModelRepository", Repository)
    monkeypatch.setattr(StrictServer, "config", "{}")
    harness: Any = Harness(tmp_path)
    strict = StrictServer(harness)
    for _ in range(2):
        with pytest.raises(ServerFailed, match="no room"):
            _ = strict.handle
        assert strict.load_error == "no room"
    strict.discard()
    assert harness.servers == []
    assert [strict.handle] == harness.servers
    assert strict.load_error is None
    assert [one.closed for one in opened] == [True, True]


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
