"""Scripted experiments on servers. Each is done once a session; several checks read what it saw."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
from tritonclient.grpc import service_pb2

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    GenerateRequest,
    Generation,
    GrpcClient,
    HttpClient,
    Response,
)
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.harness import Harness
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerProcess
from pytest_vllm_triton.models import other_known_answer_model
from pytest_vllm_triton.verdicts import untested

from .extra_models import config_with
from .metrics_page import settled_page
from .observe import (
    WORKER,
    Background,
    Footprint,
    Holdings,
    Seen,
    at_once,
    described,
    first_of,
    is_engine,
    is_stub,
    living,
    text_or_error,
    until,
)
from .servers import EngineDeath, StrictServer, engine_process

UNLOAD_SECONDS = 30.0
# From an answer that the engine is unhealthy until the model is seen to be taken out.
TAKEN_OUT_SECONDS = 2.0
# An experiment that gives up early tells nothing, so its clients wait longer than those of a check.
PATIENCE = 180.0
# Time for processes that were told to end, on a busy machine.
GONE_SECONDS = 20.0
# Time for a backend or a server to notice what happened.
NOTICED_SECONDS = 10.0
# Triton's own default of --exit-timeout-secs.
EXIT_SECONDS = 30.0
# More than the start of a Python process takes, less than a load: vLLM is imported in it.
SHORT_STUB_TIMEOUT = 10
SHARED_LOAD = 50
# How long a stream has to run for something to happen to it meanwhile, and its tokens at most.
STREAM_SECONDS = 5.0
STREAM_TOKENS = 1800
# Streams at the same time when the engine is killed.
KILLED_STREAMS = 3

SECOND = "second_model"
STREAM_ID = "stream"
SECOND_MAX_MODEL_LEN = 512
OVERRIDE_MAX_MODEL_LEN = 256
# The engine's cache holds two of the longest sequences, and there are eight at a time: some have
# to be put off (preempted) and taken up again.
SECOND_ARGUMENTS: dict[str, Any] = {
    "max_model_len": SECOND_MAX_MODEL_LEN,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 2 * SECOND_MAX_MODEL_LEN // 32,
}
SOAK_REQUESTS = 1000
SOAK_STREAMS = 300
SOAK_CONCURRENCY = 20
# Requests without stream that are in the engine, or wait for it, when the model is unloaded.
UNARY_AT_UNLOAD = 12
# What a configuration says that was written for an early version of the backend.
EARLY_CONFIG: dict[str, Any] = {
    "input": [
        {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]},
        {"name": "stream", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
        {
            "name": "sampling_parameters",
            "data_type": "TYPE_STRING",
            "dims": [1],
            "optional": True,
        },
    ],
    "output": [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}],
}


def greedy(prompt: str, tokens: int, *, stream: bool = False) -> GenerateRequest:
    """A request whose answer has exactly this many tokens."""
    sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return GenerateRequest(prompt, stream=stream or None, sampling=sampling)


def long_stream(client: GrpcClient, prompt: str) -> GenerateRequest:
    """A stream of about five seconds on this server, or of as many tokens as fit."""
    sample = STREAM_TOKENS // 18
    seconds = client.generate(greedy(prompt, sample)).ok().seconds
    tokens = int(sample * STREAM_SECONDS / seconds)
    return greedy(prompt, min(max(tokens, sample), STREAM_TOKENS), stream=True)


def told(oracle: KnownAnswer, request: GenerateRequest) -> str:
    """What the model must answer: with the prompt, unless it streams."""
    assert isinstance(request.sampling, dict)
    prompt = str(request.text_input)
    text = oracle.answer(prompt, max_tokens=request.sampling["max_tokens"], ignore_eos=True).text
    return text if request.stream else prompt + text


def words_of(oracle: KnownAnswer) -> list[str]:
    return [piece.strip() for piece in oracle.spec.story if piece.strip().isalpha()]


def second_oracle() -> KnownAnswer:
    oracle = other_known_answer_model().known_answer
    assert oracle is not None
    return oracle


class SecondModelLife:
    """A second model on the shared server, from a load that fails to its last unload."""

    def __init__(self, harness: Harness, server: ServerHandle) -> None:
        assert server.model_repository is not None
        self.harness = harness
        self.server = server
        self.seen = Seen()
        self.oracle = second_oracle()
        self.repository = ModelRepository(server.endpoints.http, server.model_repository)
        self.http = HttpClient(server.endpoints.http, SECOND, deadline=PATIENCE)
        self.grpc = GrpcClient(server.endpoints.grpc, SECOND, deadline=PATIENCE)
        self.first = GrpcClient(
            server.endpoints.grpc, harness.settings.model_name, deadline=PATIENCE
        )
        self.first_request = greedy("Say alpha", 200, stream=True)

    def run(self) -> Seen:
        seen = self.seen
        seen.look("first text", lambda: self.first.generate(self.first_request).text)
        seen["before"] = Footprint.of(self.server)
        try:
            for step in (
                self.load_that_fails,
                self.load_while_the_first_streams,
                self.serve,
                self.unload_while_streaming,
                self.second_time,
            ):
                if not seen.step(step):
                    break
        finally:
            self.repository.close()
            seen["first text at the end"] = self._first_text()
            for client in (self.http, self.grpc, self.first):
                client.close()
        return seen

    def load_that_fails(self) -> None:
        """A cache too small for one sequence: the engine's own process finds out."""
        self._write(num_gpu_blocks_override=1)
        seen = self.seen
        seen["error of a broken load"] = self.repository.load(SECOND).error
        seen["live after a broken load"] = self.http.get("/v2/health/live").status
        seen["first text after a broken load"] = self._first_text()
        seen["left after a broken load"] = self._left_after_unload()

    def load_while_the_first_streams(self) -> None:
        self._write()
        with Background(self.first, self.first_request) as streams:
            error = self.repository.load(SECOND).error
        self.seen["error of the mended load"] = error
        self.seen["first texts during the load"] = streams.texts
        self._note_state("loaded")
        self.seen["while loaded"] = Footprint.of(self.server)

    def serve(self) -> None:
        seen = self.seen
        words = words_of(self.oracle)
        crowd = [greedy(f"number {i} {words[i % len(words)]}", 200) for i in range(64)]
        seen["crowd expected"] = [told(self.oracle, request) for request in crowd]
        seen["crowd"] = at_once(self.grpc.generate, crowd, len(crowd))
        with Background(self.first, self.first_request) as streams:
            both = [greedy(f"number {i} {words[i % len(words)]}", 32) for i in range(16)]
            seen["second texts beside the first"] = at_once(self.http.generate, both, 4)
            seen["second texts expected"] = [told(self.oracle, request) for request in both]
        seen["first texts beside the second"] = streams.texts
        seen["stub before the soak"] = self._stub()
        soak = [greedy(f"{i} {words[i % len(words)]}", 4) for i in range(SOAK_REQUESTS)]
        expected = [told(self.oracle, request) for request in soak]
        answers = at_once(self.http.generate, soak, SOAK_CONCURRENCY)
        seen["soak"] = _differing(answers, expected)
        short = [
            greedy(f"{i} {words[i % len(words)]}", 4, stream=True) for i in range(SOAK_STREAMS)
        ]
        expected = [told(self.oracle, request) for request in short]
        seen["soak of streams"] = _differing(
            at_once(self.grpc.generate, short, SOAK_CONCURRENCY), expected
        )
        seen["stub after the soak"] = self._stub()
        # What server#7626 got stuck after: errors and cancelled streams.
        refused = GenerateRequest("venus", stream=True, sampling={"temperature": -1})
        seen["error before the unload"] = self.grpc.generate(refused).error
        for _ in range(3):
            with self.grpc.open() as stream:
                stream.send(greedy("venus", 400, stream=True))
                first_of(stream)

    def unload_while_streaming(self) -> None:
        seen = self.seen
        request = greedy("mars", 500, stream=True)
        unary = {str(i): greedy(f"venus {i}", 200).but(id=str(i)) for i in range(UNARY_AT_UNLOAD)}
        responses: list[Response] = []
        with self.grpc.open() as stream, ThreadPoolExecutor(1) as pool:
            for one in unary.values():
                stream.send(one)
            # Triton takes a stream's requests in order: when this one is answered, it has all.
            stream.send(request.but(id=STREAM_ID))
            stream.half_close()
            answers = iter(stream)
            for response in answers:
                responses.append(response)
                if response.id == STREAM_ID:
                    break
            unload = pool.submit(self.repository.unload, SECOND)
            until(lambda: not self.repository.is_ready(SECOND), UNLOAD_SECONDS)
            self._note_refusal("during the unload")
            seen.look("answers during the unload", lambda: [*responses, *answers])
            ended = time.monotonic()
            seen["stream expected"] = told(self.oracle, request)
            seen["unary expected"] = {i: told(self.oracle, one) for i, one in unary.items()}
            seen["error of the unload"] = unload.result().error
        seen["seconds of the unload"] = self._until_unavailable(ended)
        self._note_state("unloaded")
        self._note_refusal("after the unload")
        seen["left after the unload"] = self._left_after_unload()
        seen["first text after the unload"] = self._first_text()
        seen["after one life"] = Footprint.of(self.server)

    def second_time(self) -> None:
        """With model.json handed in, as the load API can."""
        seen = self.seen
        arguments = self._arguments(max_model_len=OVERRIDE_MAX_MODEL_LEN)
        text = json.dumps(arguments).encode()
        config = {"backend": "vllm", "instance_group": [{"kind": "KIND_MODEL"}], **EARLY_CONFIG}
        seen["error of the second load"] = self.repository.load(
            SECOND,
            {
                "config": json.dumps(config),
                "file:1/model.json": base64.b64encode(text).decode(),
            },
        ).error
        self._note_state("loaded again")
        seen.look(
            "inputs and outputs of an early configuration",
            lambda: self.http.get(self.http.path("config")).json(),
        )
        request = greedy("venus", 32)
        seen["text after the second load"] = at_once(self.http.generate, [request], 1)
        seen["text expected after the second load"] = [told(self.oracle, request)]
        between = " venus" * ((OVERRIDE_MAX_MODEL_LEN + SECOND_MAX_MODEL_LEN) // 2)
        seen.look("error of a long prompt", lambda: self.http.generate(greedy(between, 1)).error)
        started = time.monotonic()
        self.repository.unload(SECOND)
        seen["seconds of the second unload"] = self._until_unavailable(started)
        seen["left after the second unload"] = self._left_after_unload()
        seen["after two lives"] = Footprint.of(self.server)

    def _arguments(self, **changes: Any) -> dict[str, Any]:
        path = str(other_known_answer_model().path)
        arguments = {"model": path, **SECOND_ARGUMENTS, **changes}
        return self.harness.model_spec(SECOND, arguments).engine_args

    def _write(self, **changes: Any) -> None:
        spec = self.harness.model_spec(SECOND, self._arguments(**changes))
        self.repository.add(spec)

    def _first_text(self) -> str:
        return at_once(self.first.generate, [self.first_request], 1)[0]

    def _note_state(self, when: str) -> None:
        seen = self.seen
        seen.look(f"ready when {when}", lambda: self.repository.is_ready(SECOND))
        seen.look(f"state when {when}", lambda: self.repository.index()[SECOND].get("state"))

    def _note_refusal(self, when: str) -> None:
        """What a request brings, over both protocols, and how long it takes."""
        seen = self.seen
        seen.look(f"HTTP answer {when}", lambda: self.http.generate(greedy("venus", 4)))
        seen.look(f"gRPC answer {when}", lambda: self.grpc.generate(greedy("venus", 4)))

    def _stub(self) -> Holdings:
        """What the model's stub holds; nothing if there is none."""
        for process in self.server.processes():
            if is_stub(process, SECOND):
                return Holdings.of(process)
        return Holdings()

    def _until_unavailable(self, started: float) -> float | None:
        def unavailable() -> bool:
            return self.repository.index().get(SECOND, {}).get("state") == "UNAVAILABLE"

        if until(unavailable, 2 * UNLOAD_SECONDS) is None:
            return None
        return time.monotonic() - started

    def _left_after_unload(self) -> list[str]:
        """Processes and regions of the second model that do not go away."""
        before: Footprint = self.seen["before"]
        until(lambda: not Footprint.of(self.server).beyond(before).left(), GONE_SECONDS)
        return Footprint.of(self.server).beyond(before).left()


def _parts(request: GenerateRequest, number: int) -> list[GenerateRequest]:
    """The request, and some that end earlier: streams of them do not all end at the same time."""
    assert isinstance(request.sampling, dict)
    tokens = int(request.sampling["max_tokens"])
    return [
        request.but(sampling={**request.sampling, "max_tokens": tokens * (i + 1) // number})
        for i in range(number)
    ]


def _differing(answers: list[str], expected: list[str]) -> list[str]:
    """Those answers that are not what was expected."""
    pairs = zip(answers, expected, strict=True)
    return [f"{got!r} instead of {wanted!r}" for got, wanted in pairs if got != wanted]


class Deaths:
    """Every process of a server beside the shared one is killed, one after another."""

    def __init__(self, strict: StrictServer, shared: ServerHandle) -> None:
        self.strict = strict
        self.shared = shared
        self.model = strict.model
        self.seen = Seen()
        self.bystander = GrpcClient(shared.endpoints.grpc, self.model, deadline=PATIENCE)
        self.bystander_request = greedy("Say alpha", 200, stream=True)

    def run(self) -> Seen:
        seen = self.seen
        seen.look(
            "text of the other server", lambda: self.bystander.generate(self.bystander_request).text
        )
        strict = self.strict
        self.repository = strict.repository()
        endpoints = strict.handle.endpoints
        self.http = HttpClient(endpoints.http, self.model, deadline=PATIENCE)
        self.grpc = GrpcClient(endpoints.grpc, self.model, deadline=PATIENCE)
        steps = (
            self.two_servers_under_load,
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
            self.repository.close()
            for client in (self.http, self.grpc, self.bystander):
                client.close()
            strict.discard()
        return seen

    def two_servers_under_load(self) -> None:
        share_the_host(self.seen, self.shared, self.strict.handle, self.strict.harness)

    def engine_dies_while_streaming(self) -> None:
        """The engine's own process, with ENABLE_VLLM_HEALTH_CHECK "1", which is not "true"."""
        seen = self.seen
        request = long_stream(self.grpc, "Say alpha")
        full = self.grpc.generate(request.but(stream=False, exclude_input_in_output=True)).text
        processes = self._engine_processes()
        victim = engine_process(self.strict.handle)
        begun = threading.Event()
        with ThreadPoolExecutor(KILLED_STREAMS) as pool:
            streams = [
                pool.submit(self._stream_until_error, part, begun)
                for part in _parts(request, KILLED_STREAMS)
            ]
            begun.wait(PATIENCE)
            victim.kill()
            killed_at = time.monotonic()
            endings = [stream.result() for stream in streams]
        in_flight = max((ending for ending, _ in endings), key=lambda ending: len(ending.data))
        seconds = max(0.0, *(ended_at - killed_at for _, ended_at in endings))
        seen["seconds until not ready"] = until(lambda: not self._is_ready(), NOTICED_SECONDS)
        later = self.grpc.until_error(request)
        seen["engine death"] = EngineDeath(in_flight, seconds, later, full)
        until(lambda: not living(processes), GONE_SECONDS)
        seen["left of a killed engine"] = living(processes)

    def _stream_until_error(
        self, request: GenerateRequest, begun: threading.Event
    ) -> tuple[Generation, float]:
        """The first of these streams that ends with an error, and when it did.

        A kill may take its time (a `docker exec`), so there must be another stream when one ends.
        """
        while True:
            with self.grpc.open() as stream:
                stream.send(request)
                stream.half_close()
                responses = []
                for response in stream:
                    responses.append(response)
                    begun.set()
            if not responses or responses[-1].error is not None:
                answer = Generation(request, responses, stream.status, stream.seconds)
                return answer, time.monotonic()

    def worker_dies_with_health_check(self) -> None:
        seen = self.seen
        # "true" in any case; BareLife's is in lower case.
        error = seen["error of the load after the engine's death"] = self._load("True")
        expect.equal("error of the load after the engine's death", error, None)
        seen.look("answer of a healthy engine", lambda: self.grpc.generate(greedy("tango", 8)))
        processes = self._engine_processes()
        workers = [process for process in processes if is_engine(process, WORKER)]
        for process in workers or processes:
            process.kill()
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
        seen["seconds until unloaded"] = until(lambda: not self._is_ready(), UNLOAD_SECONDS)
        seen["state after the death"] = self._state()
        seen["HTTP answer of the next request"] = self.http.generate(greedy("tango", 8))
        seen["gRPC answer of the next request"] = self.grpc.generate(greedy("tango", 8))
        seen["seconds until gone"] = until(
            lambda: self._state() in ("UNAVAILABLE", None), UNLOAD_SECONDS
        )

    def stub_dies(self) -> None:
        seen = self.seen
        error = seen["error of the load after the worker's death"] = self._load("false")
        expect.equal("error of the load after the worker's death", error, None)
        request = greedy("tango", 8)
        seen.look("text after the recovery", lambda: self.grpc.generate(request).text)
        engine = self._engine_processes()
        server = self.strict.handle
        main = server.main_process()
        assert main is not None
        regions = server.regions_of(engine) - server.regions_of([main])
        stubs = [process for process in server.processes() if is_stub(process, self.model)]
        if not stubs:
            untested("no process of the server looks like the model's stub")
        for process in stubs:
            process.kill()
        until(lambda: not living(engine), GONE_SECONDS)
        seen["processes left of a killed stub"] = living(engine)
        until(lambda: not server.regions_left(regions), GONE_SECONDS)
        seen["regions left of a killed stub"] = server.regions_left(regions)
        seen.look("gRPC answer without a stub", lambda: self.grpc.generate(request))
        seen.look("HTTP answer without a stub", lambda: self.http.generate(request))
        seen.look("live without a stub", lambda: self.http.get("/v2/health/live").status)
        self.repository.unload(self.model)
        until(lambda: self._state() == "UNAVAILABLE", UNLOAD_SECONDS)
        seen["error of the load after the stub's death"] = self._load("false")
        seen.look("text after the stub's death", lambda: self.grpc.generate(request).text)

    def server_dies(self) -> None:
        seen = self.seen
        handle = self.strict.handle
        footprint = Footprint.of(handle)
        if handle.leaves_shm_when_killed:
            footprint = replace(footprint, regions=frozenset())
        others = self.shared.regions_of(self.shared.processes())
        with Background(self.bystander, self.bystander_request) as streams:
            until(lambda: bool(streams.answers), NOTICED_SECONDS)
            handle.send_signal(signal.SIGKILL)
            until(lambda: not footprint.left(), 2 * GONE_SECONDS)
            seen["left of a killed server"] = footprint.left()
        seen["texts of the other server meanwhile"] = streams.texts
        seen["regions of the other server that are gone"] = sorted(
            others - set(self.shared.regions_left(others))
        )

    def _load(self, health_check: str) -> str | None:
        config = json.loads(self.strict.config)
        config.setdefault("parameters", {})["ENABLE_VLLM_HEALTH_CHECK"] = {
            "string_value": health_check
        }
        return self.repository.load(self.model, {"config": json.dumps(config)}).error

    def _is_ready(self) -> bool:
        return self.repository.is_ready(self.model)

    def _state(self) -> str | None:
        state = self.repository.index().get(self.model, {}).get("state")
        return None if state is None else str(state)

    def _engine_processes(self) -> list[ServerProcess]:
        found = [process for process in self.strict.handle.processes() if is_engine(process)]
        if not found:
            untested("no process of the server looks like one of vLLM's engine")
        return found


class PlainLife:
    """A server as the README starts one (all models, no control API), until SIGTERM.

    It has the same shared-memory prefix as the shared server, as two servers have that are started
    without the option. Its first model has the health check on, its second one custom metrics.
    Nothing is done to it before SIGTERM that a server must not be exposed to.
    """

    def __init__(self, harness: Harness, shared: ServerHandle) -> None:
        self.harness = harness
        self.shared = shared
        self.model = harness.settings.model_name
        self.seen = Seen()
        self.oracle = second_oracle()

    def run(self) -> Seen:
        harness, seen = self.harness, self.seen
        second = harness.model_spec(
            SECOND,
            {"model": str(other_known_answer_model().path)},
            config_with(REPORT_CUSTOM_METRICS="true"),
        )
        spec = harness.server_spec(
            harness.model_spec(config=_health_check_on()),
            second,
            control_mode="none",
            shm_prefix=self.shared.shm_prefix,
            shm_domain=self.shared.shm_domain,
        )
        self.regions_before = self.shared.all_regions()
        self.handle = harness.boot(spec, "all models, no control API, until SIGTERM")
        try:
            for step in (
                self.health,
                self.control_is_refused,
                self.two_servers_under_load,
                self.sigterm_while_streaming,
            ):
                seen.step(step)
        finally:
            self.handle.stop()
            harness.forget(self.handle)
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
            seen["text expected of the second model"] = told(self.oracle, request)
        page = settled_page(self.handle, lambda page: bool(page.vllm_lines(SECOND)))
        seen["lines of metrics"] = {name: page.vllm_lines(name) for name in (self.model, SECOND)}

    def control_is_refused(self) -> None:
        seen = self.seen
        assert self.handle.model_repository is not None
        repository = ModelRepository(self.handle.endpoints.http, self.handle.model_repository)
        seen["load error"] = repository.load(SECOND).error
        seen["unload error"] = repository.unload(SECOND).error
        seen["ready after load and unload"] = repository.is_ready(SECOND)
        repository.close()
        with self._http(SECOND) as http:
            request = greedy("mars", 8)
            seen["text after load and unload"] = http.generate(request).text
            seen["text expected after load and unload"] = told(self.oracle, request)

    def two_servers_under_load(self) -> None:
        share_the_host(self.seen, self.shared, self.handle, self.harness)

    def sigterm_while_streaming(self) -> None:
        seen = self.seen
        handle = self.handle
        footprint = Footprint.of(handle)
        others = self.shared.regions_of(self.shared.processes())
        own = footprint.regions - self.regions_before - others
        with self._grpc(SECOND) as streaming, self._grpc(SECOND) as late:
            request = long_stream(late, "mars")  # and connects before the server shuts down
            with streaming.open() as stream:
                stream.send(request)
                stream.half_close()
                answers = iter(stream)
                responses = [first_of(answers)]
                handle.send_signal(signal.SIGTERM)
                refused: list[Generation | Exception] = []

                def is_refused() -> bool:
                    try:
                        refused.append(late.generate(greedy("mars", 1)))
                    except Exception as error:
                        refused.append(error)
                    return isinstance(refused[-1], Exception) or refused[-1].error is not None

                seen["seconds until requests are refused"] = until(is_refused, NOTICED_SECONDS)
                seen.look("stream during the shutdown", lambda: [*responses, *answers])
                seen["stream expected"] = told(self.oracle, request)
        ended = until(lambda: handle.exit_code() is not None, EXIT_SECONDS + GONE_SECONDS)
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
        with GrpcClient(self.shared.endpoints.grpc, self.model) as bystander:
            seen["other server afterwards"] = bystander.generate(greedy("tango", 8)).error

    def _http(self, model: str) -> HttpClient:
        return HttpClient(self.handle.endpoints.http, model, deadline=PATIENCE)

    def _grpc(self, model: str) -> GrpcClient:
        return GrpcClient(self.handle.endpoints.grpc, model, deadline=PATIENCE)


class BareLife:
    """A server without metrics page and without control API, whose engine is then killed.

    Its vLLM model asks for custom metrics and has the health check on; beside it is a model without
    vLLM. The python backend has settings that are not for the vLLM backend: a batch size for models
    that name none, and a time-out of stubs that is shorter than a load.
    """

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.model = harness.settings.model_name
        self.seen = Seen()

    def run(self) -> Seen:
        harness, seen = self.harness, self.seen
        config = config_with(REPORT_CUSTOM_METRICS="true", ENABLE_VLLM_HEALTH_CHECK="true")
        echo = ModelSpec(ECHO, config=_ECHO_CONFIG, files=(("1/model.py", _ECHO_CODE.encode()),))
        spec = harness.server_spec(
            harness.model_spec(config=config),
            echo,
            args=(
                "--allow-metrics=false",
                "--backend-config=python,default-max-batch-size=8",
                f"--backend-config=python,stub-timeout-seconds={SHORT_STUB_TIMEOUT}",
            ),
            control_mode="none",
        )
        try:
            self.handle = harness.boot(spec, "no metrics page, no control API; its engine dies")
        except ServerFailed as failure:
            seen["boot error"] = failure.reason
            return seen
        seen["boot error"] = None
        seen["boot seconds"] = self.handle.boot_seconds
        try:
            for step in (self.serve, self.engine_dies):
                if not seen.step(step):
                    break
        finally:
            self.handle.kill()
            harness.forget(self.handle)
        return seen

    def serve(self) -> None:
        seen = self.seen
        with self._http(self.model) as http:
            seen["/v2/health/ready"] = http.get("/v2/health/ready").status
            seen["max_batch_size"] = http.get(http.path("config")).json().get("max_batch_size")
            seen["answer"] = http.generate(greedy("Say alpha", 8))
        seen["refusal of the metrics page"] = _refusal(str(self.handle.metrics_address))

    def engine_dies(self) -> None:
        """This server cannot unload the model."""
        seen = self.seen
        stubs = [p for p in self.handle.processes() if is_stub(p, self.model)]
        children = [child for stub in stubs for child in stub.children(recursive=True)]
        engine = [process for process in children if is_engine(process)]
        if not engine:
            untested("no process of the server looks like one of vLLM's engine")
        for process in engine:
            process.kill()
        until(lambda: not living(engine), GONE_SECONDS)
        with self._http(self.model) as http:
            with GrpcClient(self.handle.endpoints.grpc, self.model, deadline=PATIENCE) as grpc:
                answers = [grpc.generate(greedy("tango", 8)), http.generate(greedy("tango", 8))]
            seen["answers of a dead engine"] = answers
            seen["live with a dead engine"] = http.get("/v2/health/live").status
            seen["stubs that crashed"] = [described(stub) for stub in stubs if not living([stub])]
            tensor = {"name": "IN", "shape": [1], "datatype": "BYTES", "data": ["mars"]}
            path = f"/v2/models/{ECHO}/infer"
            echoed = http.request("POST", path, json_body={"inputs": [tensor]})
            seen["answer of the other model"] = echoed.text

    def _http(self, model: str) -> HttpClient:
        return HttpClient(self.handle.endpoints.http, model, deadline=PATIENCE)


ECHO = "echo_model"
_ECHO_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
_ECHO_CODE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN") for request in requests]
        outputs = [pb_utils.Tensor("OUT", tensor.as_numpy()) for tensor in inputs]
        return [pb_utils.InferenceResponse([tensor]) for tensor in outputs]
"""


def _refusal(address: str) -> Exception | None:
    """What asking for the metrics page brought: no answer is an exception, any answer None."""
    try:
        httpx.get(f"http://{address}/metrics", timeout=5.0, trust_env=False)
    except httpx.TransportError as error:
        return error
    return None


def _health_check_on() -> str:
    return """backend: "vllm"
instance_group [{ kind: KIND_MODEL }]
parameters { key: "ENABLE_VLLM_HEALTH_CHECK" value { string_value: "true" } }
parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "false" } }
"""


def share_the_host(seen: Seen, one: ServerHandle, other: ServerHandle, harness: Harness) -> None:
    """50 requests to each of two servers at the same time; each server counts its own.

    Of a model whose answers are not known, the answers are told apart by their prompts alone.
    """
    model, oracle = harness.settings.model_name, harness.model.known_answer
    seen["one /dev/shm"] = one.shm_domain == other.shm_domain
    servers = {"one": one, "other": other}
    clients = {
        name: GrpcClient(s.endpoints.grpc, model, deadline=PATIENCE) for name, s in servers.items()
    }
    before = {name: requests_served(server, model) for name, server in servers.items()}
    requests = {
        name: [greedy(f"server {name}, request {i}", 16) for i in range(SHARED_LOAD)]
        for name in servers
    }
    with ThreadPoolExecutor(2) as pool:
        running = {
            name: pool.submit(at_once, clients[name].generate, requests[name], SHARED_LOAD)
            for name in servers
        }
        texts = {name: future.result() for name, future in running.items()}
    for name, server in servers.items():
        prompts = [str(request.text_input) for request in requests[name]]
        if oracle is None:
            pairs = zip(texts[name], prompts, strict=True)
            seen[f"texts of {name}"] = [text[: len(prompt)] for text, prompt in pairs]
            seen[f"texts expected of {name}"] = prompts
        else:
            seen[f"texts of {name}"] = texts[name]
            seen[f"texts expected of {name}"] = [told(oracle, r) for r in requests[name]]
        expected = before[name] + SHARED_LOAD
        # Triton counts a request after its answer was sent.
        until(lambda: requests_served(server, model) >= expected, NOTICED_SECONDS)  # noqa: B023
        seen[f"requests counted by {name}"] = requests_served(server, model) - before[name]
        stubs = [process for process in server.processes() if is_stub(process)]
        seen[f"prefix of {name}"] = server.shm_prefix
        seen[f"regions of {name}'s stubs"] = {
            described(stub): sorted(server.regions_of([stub])) for stub in stubs
        }
    for client in clients.values():
        client.close()


def requests_served(server: ServerHandle, model: str) -> int:
    """The server's own count of good requests to a model."""
    with HttpClient(server.endpoints.http, model) as client:
        stats = client.get(client.path("stats")).json()["model_stats"][0]
    return int(stats["inference_stats"]["success"]["count"])
