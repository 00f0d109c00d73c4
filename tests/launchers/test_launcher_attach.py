"""Attaching to a server that somebody else runs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_servers import Launch, model

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.launchers.attach import AttachLauncher
from pytest_vllm_triton.launchers.base import ServerSpec


def spec(*names: str) -> ServerSpec:
    return ServerSpec(tuple(model(name) for name in names), Path("/unused"))


def test_a_running_server_is_used_and_left_alone(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never for loopback
    running = launch(model("echo"))
    launcher = AttachLauncher(
        running.endpoints.http, running.endpoints.grpc, running.endpoints.metrics
    )

    server = launcher.launch(spec("echo"), timeout=60)

    assert server.endpoints == running.endpoints
    assert not server.owned
    assert server.spec is None
    assert server.log is None
    assert server.host_pid() is None
    assert server.processes() == []
    assert server.reproduce() == ""
    assert server.is_running()
    assert server.stop() is None
    server.kill()
    assert running.is_running()

    running.stop()
    assert not server.is_running()


def test_the_named_model_counts_not_the_specification(launch: Launch) -> None:
    running = launch(model("echo"))
    launcher = AttachLauncher(running.endpoints.http, model="echo")
    assert launcher.launch(spec("another"), timeout=60).is_running()


def test_a_model_that_is_not_there_is_told_with_those_that_are(launch: Launch) -> None:
    running = launch(model("echo"))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no model 'other'; it has: echo\."):
        AttachLauncher(running.endpoints.http, model="other").launch(spec(), timeout=600)
    assert time.monotonic() - start < 15


def test_wrong_metrics_address_is_told(launch: Launch) -> None:
    running = launch(model("echo"))
    wrong = f"{running.endpoints.http}/metrics"
    with pytest.raises(UserError, match=f"{wrong} does not answer 200"):
        AttachLauncher(running.endpoints.http, metrics=wrong, model="echo").launch(
            spec(), timeout=600
        )


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UserError) as failure:
        AttachLauncher(f"127.0.0.1:{port}").launch(spec("echo"), timeout=600)
    assert time.monotonic() - start < 15
    assert f"http://127.0.0.1:{port} cannot be attached to" in str(failure.value)
    assert "--triton-url" in str(failure.value)


def test_somebody_listens_who_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            AttachLauncher(f"127.0.0.1:{silent.getsockname()[1]}").launch(spec("echo"), timeout=600)
        assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("http", "grpc", "metrics", "expected"),
    [
        ("h:8000", None, None, ("http://h:8000", "h:8001", None)),
        ("http://h:9100/", None, None, ("http://h:9100", "h:9101", None)),
        ("h:8000/triton/", "h:443", None, ("http://h:8000/triton", "h:443", None)),
        ("h:1", "grpc://g:2", "m:3", ("http://h:1", "g:2", "http://m:3/metrics")),
        ("[::1]:8000", None, "http://m:1/x", ("http://[::1]:8000", "[::1]:8001", "http://m:1/x")),
    ],
)
def test_addresses(
    http: str, grpc: str | None, metrics: str | None, expected: tuple[str, str, str | None]
) -> None:
    endpoints = AttachLauncher(http, grpc, metrics).endpoints
    assert (endpoints.http, endpoints.grpc, endpoints.metrics) == expected


@pytest.mark.parametrize(
    ("http", "grpc", "said"),
    [
        ("", None, "http://HOST:PORT"),
        ("ftp://h:1", None, "http://HOST:PORT"),
        ("h:0", None, "http://HOST:PORT"),
        ("h:1", "h", "HOST:PORT"),
        ("h:65535", None, "--triton-grpc-url"),
    ],
)
def test_what_is_no_address_is_refused(http: str, grpc: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        AttachLauncher(http, grpc)


class _Ready(BaseHTTPRequestHandler):
    """A server on which everything is ready, and whose every page is this one."""

    page = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def ready_server(port: int, page: str = "") -> Iterator[int]:
    handler = type("Ready", (_Ready,), {"page": page.encode()})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("page", "is_metrics"),
    [("nv_inference_count 1", True), ("<h1>another service</h1>", False), (None, False)],
)
def test_usual_metrics_address_counts_if_metrics_are_there(
    page: str | None, is_metrics: bool
) -> None:
    """A page that was only guessed and is not there is unknown, and no failure of the backend."""
    with ready_server(0) as port:
        beside = nullcontext() if page is None else ready_server(port + 2, page)
        with beside:
            server = AttachLauncher(f"127.0.0.1:{port}").launch(spec("echo"), timeout=60)
    known = f"http://127.0.0.1:{port + 2}/metrics" if is_metrics else None
    assert server.endpoints.metrics == known
    assert server.endpoints.grpc == f"127.0.0.1:{port + 1}"
