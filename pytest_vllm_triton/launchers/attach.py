"""Use a server that is already running, without ever stopping or changing it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import httpx

from pytest_vllm_triton.addresses import host_and_port, http_url, port_above
from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.launchers.base import (
    Endpoints,
    ServerHandle,
    ServerProcess,
    ServerSpec,
)
from pytest_vllm_triton.launchers.readiness import not_ready
from pytest_vllm_triton.plain_http import plain_client
from pytest_vllm_triton.progress import Progress, silent

#: A server that is to be attached to is there already: it answers soon or not at all.
ANSWER_SECONDS = 5.0


class AttachLauncher:
    """Attaches to the server at these addresses.

    Args:
        http: base URL, such as ``http://staging:8000``; the scheme may be left out.
        grpc: host and port; default: the port of ``http`` + 1, as in Triton's own defaults.
        metrics: URL of the Prometheus page; default: the port of ``http`` + 2, if metrics are there
            when the server is attached to. A guess that is wrong says nothing about the backend.
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
        url = http_url(http)
        self.endpoints = Endpoints(
            http=url,
            grpc=host_and_port(grpc) if grpc else _default_grpc(url),
            metrics=_metrics_url(metrics) if metrics else None,
        )
        self.model = model

    def close(self) -> None:
        """Nothing: it holds nothing."""

    def launch(
        self,
        spec: ServerSpec,
        *,
        timeout: float,
        progress: Progress = silent,
    ) -> ServerHandle:
        """A handle on the running server, once it and the models of ``spec`` are ready.

        Raises UserError within seconds where there is no such server or model: one that runs is not
        waited for as one that boots is.
        """
        del progress  # nothing takes long here
        handle = AttachedHandle(endpoints=self.endpoints, owned=False)
        models = spec.started_models if self.model is None else (self.model,)
        deadline = time.monotonic() + min(timeout, ANSWER_SECONDS)
        with plain_client(2.0) as client:
            while True:
                try:
                    missing = not_ready(client, handle, models)
                except ServerFailed as failure:
                    missing = failure.reason
                if not missing:
                    self._guess_metrics(client, handle)
                    return handle
                if time.monotonic() > deadline:
                    missing = missing.rstrip(".")
                    raise UserError(
                        f"The server at {self.endpoints.http} cannot be attached to: {missing}. "
                        "Check --triton-url, --triton-metrics-url and --triton-model-name."
                    )
                time.sleep(0.2)

    def _guess_metrics(self, client: httpx.Client, handle: AttachedHandle) -> None:
        """Add the usual metrics address, if none was given and metrics are there."""
        address = port_above(self.endpoints.http, 2)
        if self.endpoints.metrics is not None or address is None:
            return
        url = _metrics_url(address)
        if _is_metrics_page(client, url):
            handle.endpoints = replace(self.endpoints, metrics=url)


@dataclass(eq=False)
class AttachedHandle(ServerHandle):
    """A server that somebody else runs."""

    def host_pid(self) -> int | None:
        return None

    def is_running(self) -> bool:
        try:
            with plain_client(2.0) as client:
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


def _metrics_url(text: str) -> str:
    url = http_url(text)
    has_path = url.removeprefix("http://").partition("/")[2]
    return url if has_path else f"{url}/metrics"


def _default_grpc(http: str) -> str:
    address = port_above(http, 1)
    if address is None:
        raise UserError(f"{http!r} has no port after it: name the server's --triton-grpc-url.")
    return address


def _is_metrics_page(client: httpx.Client, url: str) -> bool:
    """Whether Triton's metrics are there, and not something else, or nothing."""
    try:
        answer = client.get(url)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and "nv_" in answer.text
