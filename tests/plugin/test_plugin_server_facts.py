"""The report names the version of a server that was not made by the plugin."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from pytest_vllm_triton.launchers.base import Endpoints
from pytest_vllm_triton.servers.facts import triton_version
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session.state import SETTINGS


class Server(HTTPServer):
    """Answers ``/v2`` with ``body``, anything else with 404."""

    body = b'{"name": "triton", "version": "2.67.0", "extensions": []}'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2" else 404)
        self.end_headers()
        self.wfile.write(self.server.body if self.path == "/v2" else b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_version(server: Server) -> None:
    assert triton_version(address(server)) == "2.67.0"


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b"{}", b'{"version": 2}'])
def test_server_that_does_not_say(server: Server, body: bytes) -> None:
    server.body = body
    assert triton_version(address(server)) == ""


def test_nobody_there(server: Server) -> None:
    closed = address(server)
    server.server_close()
    assert triton_version(closed) == ""


def test_harness_tells_it(server: Server, pytester: pytest.Pytester) -> None:
    config = pytester.parseconfigure(f"--triton-url={address(server)}")
    harness = Harness(Provision(config.stash[SETTINGS], lambda: pytester.path))
    config._ensure_unconfigure()
    handle = SimpleNamespace(
        endpoints=Endpoints(address(server), "127.0.0.1:1"),
        stop=lambda: None,
        reproduce=lambda: "",
        share_loads=lambda *_: None,
    )
    harness.provision._launcher = SimpleNamespace(  # type: ignore[assignment]
        launch=lambda *_, **__: handle, close=lambda: None
    )
    assert "triton" not in harness.describe()
    harness.shared_server()
    assert harness.describe()["triton"] == "2.67.0"
    harness.close()


def test_a_server_that_is_dying_is_waited_for(pytester: pytest.Pytester) -> None:
    """It takes no connections, and only the third look tells how it ended."""
    config = pytester.parseconfigure("--triton-url=http://127.0.0.1:1")
    harness = Harness(Provision(config.stash[SETTINGS], lambda: pytester.path))
    config._ensure_unconfigure()
    codes = iter([None, None, *[-11] * 9])
    harness._shared = SimpleNamespace(  # type: ignore[assignment]
        endpoints=Endpoints("http://127.0.0.1:1", "127.0.0.1:1"),
        owned=True,
        exit_code=lambda: next(codes),
        log=None,
    )
    assert harness.shared_death("before a test") is None
    death = harness.shared_death("during a test", failed=True)
    assert death is not None
    assert "signal 11 during a test" in death.reason
