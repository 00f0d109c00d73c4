"""Use a server that is already running, without ever stopping or changing it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.launchers.base import (
    Endpoints,
    Progress,
    ServerHandle,
    ServerProcess,
    ServerSpec,
)
from pytest_vllm_triton.launchers.readiness import http_client, not_ready

#: A server that is to be attached to is there already: it answers soon or not at all.
ANSWER_SECONDS = 5.0


class AttachLauncher:
    """Attaches to the server at these addresses.

    Attributes:
        http: base URL, such as ``http://staging:8000``; the scheme may be left out.
        grpc: host and port; default: the host of ``http`` with port 8001.
        metrics: URL of the Prometheus page; None: no metrics are looked at.
        model: the model that must be ready; None: those that the specification names.
    """

    def __init__(
        self,
        http: str,
        grpc: str | None = None,
        metrics: str | None = None,
        *,
        model: str | None = None,
    ) -> None:
        self.endpoints = Endpoints(
            http=_url(http, "--triton-url"),
            grpc=_host_and_port(grpc) if grpc else _default_grpc(http),
            metrics=_metrics_url(metrics) if metrics else None,
        )
        self.model = model

    def describe(self) -> str:
        return f"attach ({self.endpoints.http})"

    def close(self) -> None:
        """Nothing: it holds nothing."""

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        on_progress: Progress | None = None,
    ) -> ServerHandle:
        """A handle on the running server, once it and the models of ``spec`` are ready.

        Raises UserError within seconds where there is no such server or model: one that runs is not
        waited for as one that boots is.
        """
        del on_progress  # nothing takes long here
        handle = AttachedHandle(endpoints=self.endpoints, owned=False)
        models = spec.started_models if self.model is None else (self.model,)
        deadline = time.monotonic() + min(timeout, ANSWER_SECONDS)
        with http_client(self.endpoints, timeout=2.0) as client:
            while True:
                try:
                    missing = not_ready(client, handle, models)
                except ServerFailed as failure:
                    missing = failure.reason
                if not missing:
                    return handle
                if time.monotonic() > deadline:
                    missing = missing.rstrip(".")
                    raise UserError(
                        f"The server at {self.endpoints.http} cannot be attached to: {missing}. "
                        "Check --triton-url, --triton-metrics-url and the model's name."
                    )
                time.sleep(0.2)


@dataclass
class AttachedHandle(ServerHandle):
    """A server that somebody else runs."""

    @property
    def server_pid(self) -> int | None:
        return None

    def is_running(self) -> bool:
        import httpx

        try:
            with http_client(self.endpoints, timeout=2.0) as client:
                return client.get(f"{self.endpoints.http}/v2/health/live").status_code == 200
        except httpx.TransportError:
            return False

    def exit_code(self) -> int | None:
        return None

    def processes(self) -> list[ServerProcess]:
        return []

    def main_process(self) -> None:
        return None

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing: it is not ours to signal."""

    def regions_of(self, processes: Iterable[ServerProcess]) -> set[str]:
        return set()

    def all_regions(self) -> set[str]:
        return set()

    def stop(self, timeout: float | None = None) -> int | None:
        """Nothing: it is not ours to stop."""
        return None

    def kill(self) -> None:
        """Nothing: it is not ours to stop."""


def _url(text: str, option: str) -> str:
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise UserError(f"{option} {text!r} is no address such as http://127.0.0.1:8000.")
    return url.rstrip("/")


def _metrics_url(text: str) -> str:
    url = _url(text, "--triton-metrics-url")
    has_path = url.partition("://")[2].partition("/")[2]
    return url if has_path else f"{url}/metrics"


def _host_and_port(text: str) -> str:
    address = re.sub(r"^grpcs?://|^https?://", "", text).rstrip("/")
    if not re.fullmatch(r"[^/\s]+:\d+", address):
        raise UserError(f"--triton-grpc-url {text!r} is no address such as 127.0.0.1:8001.")
    return address


def _default_grpc(http: str) -> str:
    authority = http.rpartition("://")[2].partition("/")[0]
    host = re.sub(r":\d+$", "", authority)
    return f"{host}:8001"
