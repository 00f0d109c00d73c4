"""Every process of a server is killed, one after another."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from packaging.version import Version

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    GenerateRequest,
    Generation,
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ServerHandle, ServerProcess
from pytest_vllm_triton.launchers.death import await_death, crashed
from pytest_vllm_triton.verdicts import untested

from ..processes import WORKER, Footprint, engine_process, is_engine, is_stub, kill, living
from ..record import Seen
from ..strict_server import StrictServer
from ..traffic import Background, greedy, long_stream
from ..waits import (
    GONE_SECONDS,
    NOTICED_SECONDS,
    PATIENCE,
    TAKEN_OUT_SECONDS,
    UNLOAD_SECONDS,
    until,
)

# 26.03, whose python backend calls a model's is_ready().
ASKS_MODELS = Version("2.67")
# Streams at the same time when the engine is killed.
KILLED_STREAMS = 3


@dataclass(frozen=True)
class EngineDeath:
    """What clients saw when the engine process was killed.

    Attributes:
        endings: of each request that was in flight, how it ended.
        in_flight: the one of them that had told most.
        finished: the answers that were complete before the kill.
        seconds_to_error: from the kill to the last response of all.
        later: a request sent after that.
        full_text: what the request in flight would have told.
    """

    endings: Sequence[Generation]
    in_flight: Generation
    finished: Sequence[Generation]
    seconds_to_error: float
    later: Generation
    full_text: str


class Deaths:
    """Every process of a server beside the shared one is killed, one after another.

    Attributes:
        crashed: whether the server crashed instead, as Triton 24.10 may by itself when it is
            asked for an error in gRPC's error mode.
    """

    def __init__(self, strict: StrictServer, shared: ServerHandle) -> None:
        self.strict = strict
        self.shared = shared
        self.model = strict.model
        self.seen = Seen()
        self.crashed = False
        # Of the server that runs now, from `_open_clients` on.
        self.handle: ServerHandle
        self.repository: ModelRepository
        self.http: HttpClient
        self.grpc: GrpcClient
        self.bystander = GrpcClient(shared.endpoints.grpc, self.model, deadline=PATIENCE)
        self.bystander_request = greedy("Say alpha", 200, stream=True)

    def run(self) -> Seen:
        seen = self.seen
        seen.look(
            "text of the other server", lambda: self.bystander.generate(self.bystander_request).text
        )
        self._open_clients()
        steps = (
            self.engine_dies_while_streaming,
            self.worker_dies_with_health_check,
            self.stub_dies,
            self.server_dies,
        )
        try:
            for step in steps:
                if not seen.step(step):
                    break
        finally:
            await_death(self.handle)
            self.crashed = crashed(self.handle)
            self._close_clients()
            self.bystander.close()
            self.strict.discard()
        return seen

    def _open_clients(self) -> None:
        # Kept: asked for its handle, a strict server that is gone boots another one.
        self.handle = self.strict.handle
        endpoints = self.handle.endpoints
        self.seen.watch(self.handle)
        self.repository = self.strict.repository()
        self.http = HttpClient(endpoints.http, self.model, deadline=PATIENCE)
        self.grpc = GrpcClient(endpoints.grpc, self.model, deadline=PATIENCE)

    def _close_clients(self) -> None:
        self.repository.close()
        self.http.close()
        self.grpc.close()

    def engine_dies_while_streaming(self) -> None:
        """The engine's own process, with ENABLE_VLLM_HEALTH_CHECK "1", which is not "true"."""
        seen = self.seen
        # So long, or as many tokens as fit: a stream must still be running when the engine is
        # killed, and on a busy host many tokens come between two looks of its client.
        request = long_stream(self.grpc, "Say alpha", seconds=60.0)
        full = self.grpc.generate(request.but(stream=False, exclude_input_in_output=True)).text
        processes = self._engine_processes()
        victim = engine_process(self.handle)
        begun, over = threading.Event(), threading.Event()
        parts = _parts(request.but(returns=("num_output_tokens",)), KILLED_STREAMS)
        finished: list[Generation] = []
        with ThreadPoolExecutor(len(parts)) as pool:
            running = [
                pool.submit(self._ask_until_error, part, begun, over, finished) for part in parts
            ]
            try:
                begun.wait(PATIENCE)
                victim.kill()
                killed_at = time.monotonic()
                wait(running, GONE_SECONDS)
            finally:
                over.set()
            endings, ended_at = zip(*[one.result() for one in running], strict=True)
        in_flight = max(endings, key=lambda ending: len(ending.data))
        seconds = max(0.0, *(at - killed_at for at in ended_at))
        # An older Triton never asks the model, so there is nothing to wait for.
        patience = NOTICED_SECONDS if self._triton_version() >= ASKS_MODELS else 0.0
        seen["seconds until not ready"] = until(lambda: not self._is_ready(), patience)
        later = self.grpc.until_error(request)
        seen["state after the engine's death"] = self._state()
        seen["engine death"] = EngineDeath(endings, in_flight, finished, seconds, later, full)
        until(lambda: not living(processes), GONE_SECONDS)
        seen["left of a killed engine"] = living(processes)

    def _ask_until_error(
        self,
        request: GenerateRequest,
        begun: threading.Event,
        over: threading.Event,
        finished: list[Generation],
    ) -> tuple[Generation, float]:
        """Send the request again and again until one ends with an error or all is over; the answer
        of that one, and when it ended.

        A kill may take a while (a `docker exec`), so whenever a stream ends without an error, it is
        added to `finished` and another one is started.
        """
        while True:
            with self.grpc.open() as stream:
                stream.send(request)
                stream.half_close()
                responses = []
                for response in stream:
                    responses.append(response)
                    begun.set()
            answer = Generation(request, responses, stream.status, stream.seconds)
            if not responses or responses[-1].error is not None or over.is_set():
                return answer, time.monotonic()
            finished.append(answer)

    def worker_dies_with_health_check(self) -> None:
        seen = self.seen
        # "true" in any case; BareLife's is in lower case.
        seen["error of the load after the engine's death"] = self._load_or_reboot("True")
        seen.look("answer of a healthy engine", lambda: self.grpc.generate(greedy("tango", 8)))
        processes = self._engine_processes()
        workers = [process for process in processes if is_engine(process, WORKER)]
        kill(workers or processes)
        until(lambda: not living(processes), GONE_SECONDS)
        seen["left of a killed worker"] = living(processes)
        # It streams; BareLife's do not.
        request = greedy("tango", 8, stream=True)
        # A request that vLLM took before it noticed the death is like one in flight.
        for _ in range(3):
            answer = self.grpc.until_error(request)
            seen["responses after the death"] = answer.responses
            seen["status after the death"] = answer.status
            if until(lambda: self._state() != "READY", TAKEN_OUT_SECONDS) is not None:
                break
        # Newer Tritons call a model not ready as soon as its engine is dead, and unload it then.
        seen["seconds until unloaded"] = until(
            lambda: not self._is_ready() and self._state() != "READY", UNLOAD_SECONDS
        )
        seen["state after the death"] = self._state()
        seen["HTTP answer of the next request"] = self.http.generate(greedy("tango", 8))
        seen["gRPC answer of the next request"] = self.grpc.generate(greedy("tango", 8))
        seen["seconds until gone"] = until(
            lambda: self._state() in ("UNAVAILABLE", None), UNLOAD_SECONDS
        )

    def stub_dies(self) -> None:
        seen = self.seen
        seen["error of the load after the worker's death"] = self._load_or_reboot("false")
        request = greedy("tango", 8)
        seen.look("text after the recovery", lambda: self.grpc.generate(request).text)
        engine = self._engine_processes()
        server = self.handle
        main = server.main_process()
        if main is None:
            raise expect.Violation("tritonserver", expect.Words("to run"), expect.Words("ended"))
        regions = server.regions_of(engine) - server.regions_of([main])
        stubs = [process for process in server.processes() if is_stub(process, self.model)]
        if not stubs:
            untested("no process of the server looks like the model's stub")
        kill(stubs)
        until(lambda: not living(engine), GONE_SECONDS)
        seen["processes left of a killed stub"] = living(engine)
        until(lambda: not server.regions_left(regions), GONE_SECONDS)
        seen["regions left of a killed stub"] = server.regions_left(regions)
        seen.look("gRPC answer without a stub", lambda: self.grpc.generate(request))
        seen.look("HTTP answer without a stub", lambda: self.http.generate(request))
        seen.look("live without a stub", lambda: self.http.get("/v2/health/live").status)
        self.repository.unload(self.model)
        # Triton 24.10 calls it UNLOADING from then on, and loads it none the less.
        until(lambda: self._state() == "UNAVAILABLE", TAKEN_OUT_SECONDS)
        seen["error of the load after the stub's death"] = self._load("false")
        seen.look("text after the stub's death", lambda: self.grpc.generate(request).text)

    def server_dies(self) -> None:
        seen = self.seen
        handle = self.handle
        footprint = Footprint.of(handle)
        others = self.shared.regions_of(self.shared.processes())
        # Those of the shared server have the same prefix.
        own = handle.regions_of(footprint.processes) - others
        if handle.leaves_shm_when_killed:
            own.clear()
        footprint = replace(footprint, regions=frozenset(own))
        with Background(self.bystander, self.bystander_request) as streams:
            until(lambda: bool(streams.answers), NOTICED_SECONDS)
            handle.send_signal(signal.SIGKILL)
            until(lambda: not footprint.left(), 2 * GONE_SECONDS)
            seen["left of a killed server"] = footprint.left()
        seen["texts of the other server meanwhile"] = streams.texts
        seen["regions of the other server that are gone"] = sorted(
            others - set(self.shared.regions_left(others))
        )

    def _load_or_reboot(self, health_check: str) -> str | None:
        """Load the model; if that fails, on a new server, so that the experiment goes on.

        Returns the error of the first attempt.
        """
        error = self._load(health_check)
        if error is not None:
            self._close_clients()
            self.strict.discard()
            self._open_clients()
            expect.equal("error of the load on a new server", self._load(health_check), None)
        return error

    def _load(self, health_check: str) -> str | None:
        config = json.loads(self.strict.config)
        config.setdefault("parameters", {})["ENABLE_VLLM_HEALTH_CHECK"] = {
            "string_value": health_check
        }
        return self.repository.load(self.model, {"config": json.dumps(config)}).error

    def _triton_version(self) -> Version:
        return Version(self.http.get("/v2").json()["version"])

    def _is_ready(self) -> bool:
        return self.repository.is_ready(self.model)

    def _state(self) -> str | None:
        state = self.repository.index().get(self.model, {}).get("state")
        return None if state is None else str(state)

    def _engine_processes(self) -> list[ServerProcess]:
        found = [process for process in self.handle.processes() if is_engine(process)]
        if not found:
            untested("no process of the server looks like one of vLLM's engine")
        return found


def _parts(request: GenerateRequest, number: int) -> list[GenerateRequest]:
    """The request, and some that end earlier: streams of them do not all end at the same time.

    The last one does not stream.
    """
    assert isinstance(request.sampling, dict)
    tokens = int(request.sampling["max_tokens"])
    streams = [
        request.but(sampling={**request.sampling, "max_tokens": tokens * (i + 1) // number})
        for i in range(number)
    ]
    return [*streams, request.but(stream=None)]
