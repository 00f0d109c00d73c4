"""A server as the README starts one, until SIGTERM."""

from __future__ import annotations

import signal

from tritonclient.grpc import service_pb2

from pytest_vllm_triton.clients import GrpcClient, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.flags import EXIT_TIMEOUT_SECONDS
from pytest_vllm_triton.models.under_test import other_known_answer_model
from pytest_vllm_triton.servers.harness import Harness

from ..extra_models import config_with
from ..metrics_page import page_with_lines
from ..processes import Footprint, living
from ..record import Seen
from ..traffic import (
    Background,
    expected_text,
    first_of,
    greedy,
    long_stream,
    second_oracle,
    text_or_error,
)
from ..waits import ANSWER_SECONDS, GONE_SECONDS, NOTICED_SECONDS, PATIENCE, until
from .second_model import SECOND
from .shared_host import share_the_host


class PlainLife:
    """A server as the README starts one (all models, no control API), until SIGTERM.

    It has the same shared-memory prefix as the shared server, as two servers have that are started
    without the option. Its first model has the health check on, its second one custom metrics.
    Nothing is done to it before SIGTERM that a server must not be exposed to.
    """

    def __init__(self, harness: Harness, shared: ServerHandle) -> None:
        self.harness = harness
        self.shared = shared
        self.model = harness.model_name
        self.seen = Seen()
        self.oracle = second_oracle()
        self.handle: ServerHandle
        self.regions_before: set[str]

    def run(self) -> Seen:
        harness, seen = self.harness, self.seen
        second = harness.model_spec(
            SECOND,
            {"model": str(other_known_answer_model().path)},
            config_with(REPORT_CUSTOM_METRICS="true"),
        )
        spec = harness.server_spec(
            harness.model_spec(
                config=config_with(ENABLE_VLLM_HEALTH_CHECK="true", REPORT_CUSTOM_METRICS="yes")
            ),
            second,
            control_mode="none",
            shm_prefix=self.shared.shm_prefix,
            shm_domain=self.shared.shm_domain,
        )
        self.regions_before = self.shared.all_regions()
        with harness.booted(spec, "all models, no control API, until SIGTERM") as self.handle:
            seen.watch(self.handle)
            for step in (
                self.health,
                self.control_is_refused,
                self.two_servers_under_load,
                self.sigterm_while_streaming,
            ):
                seen.step(step)
        return seen

    def health(self) -> None:
        seen = self.seen
        with self._http(self.model) as http, self._grpc(self.model) as grpc:
            for path in ("live", "ready"):
                seen[f"/v2/health/{path}"] = http.get(f"/v2/health/{path}").status
            for name in (self.model, SECOND, "no_such_model"):
                seen[f"HTTP ready: {name}"] = http.get(f"/v2/models/{name}/ready").status
                asked = service_pb2.ModelReadyRequest(name=name)
                seen[f"gRPC ready: {name}"] = grpc.stub.ModelReady(asked, timeout=10.0).ready
            seen["answers with the check on"] = [
                text_or_error(grpc.generate(greedy("tango", 8))) for _ in range(10)
            ]
            seen["ready after them"] = http.get(http.path("ready")).status
        with self._http(SECOND) as http:
            request = greedy("venus", 8)
            seen["text of the second model"] = http.generate(request).text
            seen["text expected of the second model"] = expected_text(self.oracle, request)
        page = page_with_lines(self.handle, SECOND)
        seen["lines of metrics"] = {name: page.vllm_lines(name) for name in (self.model, SECOND)}

    def control_is_refused(self) -> None:
        seen = self.seen
        repository = ModelRepository(self.handle)
        seen["load error"] = repository.load(SECOND).error
        seen["unload error"] = repository.unload(SECOND).error
        seen["ready after load and unload"] = repository.is_ready(SECOND)
        repository.close()
        with self._http(SECOND) as http:
            request = greedy("mars", 8)
            seen["text after load and unload"] = http.generate(request).text
            seen["text expected after load and unload"] = expected_text(self.oracle, request)

    def two_servers_under_load(self) -> None:
        share_the_host(self.seen, self.shared, self.handle, self.harness)

    def sigterm_while_streaming(self) -> None:
        seen = self.seen
        with GrpcClient(self.shared.endpoints.grpc, self.model) as bystander:
            request = greedy("tango", 64, stream=True)
            seen.look("text of the other server", lambda: bystander.generate(request).ok().text)
            with Background(bystander, request) as streams:
                self._sigterm_while_streaming()
        seen["texts of the other server meanwhile"] = streams.texts

    def _sigterm_while_streaming(self) -> None:
        seen = self.seen
        handle = self.handle
        footprint = Footprint.of(handle)
        others = self.shared.regions_of(self.shared.processes())
        own = footprint.regions - self.regions_before - others
        with (
            self._grpc(SECOND) as streaming,
            GrpcClient(handle.endpoints.grpc, SECOND, deadline=ANSWER_SECONDS) as late,
        ):
            # And connects before the server shuts down. Short enough for a server that drains.
            request = long_stream(late, "mars", seconds=5.0)
            with streaming.open() as stream:
                stream.send(request)
                stream.half_close()
                answers = iter(stream)
                responses = [first_of(answers)]
                handle.send_signal(signal.SIGTERM)
                # One that is not answered at all is not refused.
                seen.look(
                    "seconds until requests are refused",
                    lambda: until(
                        lambda: late.generate(greedy("mars", 1)).error is not None, NOTICED_SECONDS
                    ),
                )
                seen["exit code when requests were refused"] = handle.exit_code()
                seen.look("stream during the shutdown", lambda: [*responses, *answers])
                seen["stream expected"] = expected_text(self.oracle, request)
        ended = until(lambda: handle.exit_code() is not None, EXIT_TIMEOUT_SECONDS + GONE_SECONDS)
        seen["seconds until the exit"] = ended
        seen["exit code"] = handle.exit_code()
        until(
            lambda: not living(footprint.processes) and not handle.regions_left(own), GONE_SECONDS
        )
        seen["processes left"] = living(footprint.processes)
        seen["regions left"] = handle.regions_left(own)
        seen["regions of the other server that are gone"] = sorted(
            others - set(self.shared.regions_left(others))
        )

    def _http(self, model: str) -> HttpClient:
        return HttpClient(self.handle.endpoints.http, model, deadline=PATIENCE)

    def _grpc(self, model: str) -> GrpcClient:
        return GrpcClient(self.handle.endpoints.grpc, model, deadline=PATIENCE)
