"""A second model comes and goes on the shared server."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
    HttpClient,
    Response,
)
from pytest_vllm_triton.clients.http import http_body
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ServerHandle, ServerProcess
from pytest_vllm_triton.models.under_test import other_known_answer_model
from pytest_vllm_triton.servers.harness import Harness

from ..extra_models import config_with
from ..metered_traffic import sent
from ..metrics_page import MetricsPage, metrics_page
from ..processes import Footprint, Holdings, is_stub, living
from ..record import Seen
from ..traffic import Background, at_once, expected_text, first_of, greedy, second_oracle, words_of
from ..waits import GONE_SECONDS, PATIENCE, UNLOAD_SECONDS, until

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
# Characters of each request without stream, and of each stream: what a stub keeps of them would
# soon be seen.
SOAK_WEIGHT, STREAM_WEIGHT = 50_000, 150_000
# The same, of a request that is refused or given up: there are fewer.
ENDING_WEIGHT = 500_000
# Counted, so that there are responses while its text is held back because of a stop string.
GIVEN_UP = greedy("venus", 400, stream=True).but(returns=("num_output_tokens",))
# Each is large, and answers go through the same shared memory as requests.
GIVEN_UP_CONCURRENCY = 4
# So many are refused by the backend, as many by the engine, and as many cancelled.
SOAK_ENDINGS = 100
# Requests without stream that are in the engine, or wait for it, when the model is unloaded.
UNARY_AT_UNLOAD = 12
# MAX_INFLIGHT_REQUESTS of the second stub: more than are in flight at the unload.
IN_FLIGHT = 20
TOO_MANY_ID = "too many"
# More requests than any limit of those in flight that is there without being asked for.
QUEUE = 1200
LAST_ID = "last"
# Its metrics are the old stub's and the new one's while it is loaded anew.
METRICS = {"REPORT_CUSTOM_METRICS": "true"}
# How often its page is read while the engine's cache is full.
PAGE_SECONDS = 0.2
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


class SecondModelLife:
    """A second model on the shared server, from a load that fails to its last unload."""

    def __init__(self, harness: Harness, server: ServerHandle) -> None:
        assert server.model_repository is not None
        self.harness = harness
        self.server = server
        self.seen = Seen()
        self.oracle = second_oracle()
        self.repository = ModelRepository(server)
        self.http = HttpClient(server.endpoints.http, SECOND, deadline=PATIENCE)
        self.grpc = GrpcClient(server.endpoints.grpc, SECOND, deadline=PATIENCE)
        self.first = GrpcClient(server.endpoints.grpc, harness.model_name, deadline=PATIENCE)
        self.first_request = greedy("Say alpha", 200, stream=True)

    def run(self) -> Seen:
        seen = self.seen
        seen.watch(self.server)
        seen.look("first text", lambda: self.first.generate(self.first_request).text)
        seen["before"] = Footprint.of(self.server)
        try:
            for step in (
                self.load_that_fails,
                self.load_while_the_first_streams,
                self.crowd_beyond_the_cache,
                self.side_by_side,
                self.soak,
                self.load_anew_while_streaming,
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
        """A format that the checkpoint does not have: the engine's own process finds out.

        And a rank that no adapter may have, which vLLM minds only if there are any.
        """
        self._write(load_format="sharded_state", enable_lora="false", max_lora_rank=3)
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

    def _requests(self, count: int, tokens: int, stream: bool = False) -> list[GenerateRequest]:
        words = words_of(self.oracle)
        return [greedy(f"{i} {words[i % len(words)]}", tokens, stream=stream) for i in range(count)]

    def crowd_beyond_the_cache(self) -> None:
        seen = self.seen
        crowd = self._requests(64, 200)
        seen["crowd expected"] = [expected_text(self.oracle, request) for request in crowd]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(at_once, self.grpc.generate, crowd, len(crowd))
            seen.look("pages while its cache is full", lambda: self._pages_until(running))
            seen["crowd"] = running.result()

    def side_by_side(self) -> None:
        seen = self.seen
        with Background(self.first, self.first_request) as streams:
            both = self._requests(16, 32)
            seen["second texts beside the first"] = at_once(self.http.generate, both, 4)
            seen["second texts expected"] = [
                expected_text(self.oracle, request) for request in both
            ]
        seen["first texts beside the second"] = streams.texts

    def soak(self) -> None:
        seen = self.seen
        # Steps of their own, here and below: where one breaks off, the rest goes on.
        seen.step(self.a_thousand_wait)
        at_once(self.http.generate, _refused() * SOAK_CONCURRENCY, SOAK_CONCURRENCY)
        seen["stub before the soak"] = self._stub()
        at_once(self.http.generate, _refused() * SOAK_ENDINGS, SOAK_CONCURRENCY)
        seen.step(self.a_hundred_hang_up)
        requests = [_heavy(request) for request in self._requests(SOAK_REQUESTS, 4)]
        expected = [expected_text(self.oracle, request) for request in requests]
        answers = at_once(self.http.generate, requests, SOAK_CONCURRENCY)
        seen["soak"] = _differing(answers, expected)
        short = self._requests(SOAK_STREAMS, 4, stream=True)
        short = [_heavy(request, STREAM_WEIGHT) for request in short]
        expected = [expected_text(self.oracle, request) for request in short]
        seen["soak of streams"] = _differing(
            at_once(self.grpc.generate, short, SOAK_CONCURRENCY), expected
        )
        seen["stub after the soak"] = self._stub()
        seen.look("page after the soak", lambda: metrics_page(self.server).of(SECOND))

    def a_thousand_wait(self) -> None:
        """Behind as many as the engine takes at once. Those are given up then, and not the others:
        of so many cancelled ones Triton 24.10 crashes later, at the next stream in its error mode.
        """
        running, waiting = greedy("mars", 450, stream=True), greedy("venus", 1)
        errors: set[str] = set()
        answers = 0
        with self.grpc.open() as first, self.grpc.open() as queue:
            for _ in range(SECOND_ARGUMENTS["max_num_seqs"]):
                first.send(running)
            first_of(first)
            for _ in range(QUEUE):
                queue.send(waiting)
            # Refused at once, and after them on this stream: they have been taken by then.
            queue.send(_refused()[0].but(id=LAST_ID))
            queue.half_close()
            for response in queue:
                if response.id == LAST_ID:
                    first.cancel()
                elif response.error is not None:
                    errors.add(response.error)
                else:
                    answers += 1
        self.seen["errors of a thousand"], self.seen["answers of a thousand"] = errors, answers

    def a_hundred_hang_up(self) -> None:
        content = json.dumps(http_body(_heavy(GIVEN_UP, ENDING_WEIGHT))).encode()
        with ThreadPoolExecutor(GIVEN_UP_CONCURRENCY) as pool:
            endings = [pool.submit(self._hang_up, content) for _ in range(SOAK_ENDINGS)]
            for ending in endings:
                ending.result()

    def _hang_up(self, content: bytes) -> None:
        """Close the connection of an event stream with its first event.

        Not over gRPC, where Triton 24.10 crashes of so many cancelled streams now and then.
        """
        path = self.http.path("generate_stream")
        with (
            HttpClient(self.server.endpoints.http, SECOND, deadline=PATIENCE) as http,
            http.opened("POST", path, content) as answer,
        ):
            first_of(answer.events())

    def _pages_until(self, over: Future[Any]) -> list[MetricsPage]:
        pages = []
        while not over.done():
            pages.append(metrics_page(self.server).of(SECOND))
            wait([over], PAGE_SECONDS)
        return pages

    def _cancel(self, *requests: GenerateRequest) -> None:
        """Give up these requests, of one gRPC stream, with their first response."""
        with self.grpc.open() as stream:
            for request in requests:
                stream.send(request)
            first_of(stream)

    def load_anew_while_streaming(self) -> None:
        """Its files are new: the server changes over to a new stub when that is ready."""
        seen = self.seen
        old = self._stubs()
        old_processes = [*old, *(p for stub in old for p in stub.children(recursive=True))]
        self._write(config_with(MAX_INFLIGHT_REQUESTS=str(IN_FLIGHT), **METRICS))
        request = greedy("mars", 200, stream=True)
        with Background(self.grpc, request) as streams:
            seen["error of the load while it streams"] = self.repository.load(SECOND).error
        seen["texts while it is loaded anew"] = streams.texts
        seen["text expected while it is loaded anew"] = expected_text(self.oracle, request)
        until(lambda: not living(old_processes), GONE_SECONDS)
        seen["processes of the old one left"] = living(old_processes)
        seen["stubs"] = (old, self._stubs())
        # A step of its own: where it breaks off, the rest goes on.
        seen.step(self.one_more_than_may_be_in_flight)
        seen["while loaded"] = Footprint.of(self.server)

    def one_more_than_may_be_in_flight(self) -> None:
        seen = self.seen
        # On a fast host that stood still some may have ended before.
        for _ in range(3):
            self._send_one_too_many()
            refused = seen["one too many"].error and seen["HTTP answer to one too many"].error
            if refused and not seen["ended before one too many was answered"]:
                break
        again = greedy("venus", 4)
        seen["text after one too many"] = at_once(self.grpc.generate, [again], 1)
        seen["text expected after one too many"] = [expected_text(self.oracle, again)]

    def _send_one_too_many(self) -> None:
        """As many requests as may be in flight, every second one a stream, and two further ones
        while they run."""
        seen = self.seen
        requests = [greedy(f"number {i}", 200, stream=i % 2 == 0) for i in range(IN_FLIGHT)]
        texts = dict.fromkeys(map(str, range(IN_FLIGHT)), "")
        ended_before: list[str] = []
        with self.grpc.open() as stream:
            for index, request in enumerate(requests):
                stream.send(request.but(id=str(index)))
            # Triton takes a stream's requests in order: the others are in flight by then.
            stream.send(greedy("venus", 4).but(id=TOO_MANY_ID))
            stream.half_close()
            for response in stream:
                if response.id == TOO_MANY_ID:
                    seen["one too many"] = response
                    seen["ended before one too many was answered"] = [*ended_before]
                    seen.look(
                        "HTTP answer to one too many",
                        lambda: self.http.generate(greedy("venus", 4)),
                    )
                    # Only in this mode does gRPC tell an error's code.
                    seen.look(
                        "gRPC answer to one too many",
                        lambda: self.grpc.until_error(greedy("venus", 4)),
                    )
                    # As many again: what a refusal leaves behind would fill all places.
                    at_once(self.http.generate, [greedy("venus", 4)] * IN_FLIGHT, SOAK_CONCURRENCY)
                    continue
                expect.one_of(f"id of a response ({response.error})", response.id, [*texts])
                texts[response.id] += response.error or response.text
                if response.final:
                    ended_before.append(response.id)
        seen["texts of as many as may be in flight"] = [*texts.values()]
        seen["texts expected of as many"] = [expected_text(self.oracle, one) for one in requests]

    def unload_while_streaming(self) -> None:
        seen = self.seen
        # What server#7626 got stuck after: errors and cancelled streams.
        seen["error before the unload"] = self.grpc.generate(_refused()[0]).error
        for _ in range(3):
            # They begin together, and the first response is the second one's.
            self._cancel(GIVEN_UP.but(stream=None), GIVEN_UP)
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
            seen["stream expected"] = expected_text(self.oracle, request)
            seen["unary expected"] = {
                i: expected_text(self.oracle, one) for i, one in unary.items()
            }
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
        config = {
            "backend": "vllm",
            "instance_group": [{"kind": "KIND_MODEL"}],
            "parameters": {name: {"string_value": value} for name, value in METRICS.items()},
            **EARLY_CONFIG,
        }
        seen["error of the second load"] = self.repository.load(
            SECOND,
            {
                "config": json.dumps(config),
                "file:1/model.json": base64.b64encode(text).decode(),
            },
        ).error
        self._note_state("loaded again")
        seen.step(self.count_after_the_second_load)
        seen.look(
            "inputs and outputs of an early configuration",
            lambda: self.http.get(self.http.path("config")).json(),
        )
        request = greedy("venus", 32)
        seen["text after the second load"] = at_once(self.http.generate, [request], 1)
        seen["text expected after the second load"] = [expected_text(self.oracle, request)]
        # No request of this life fails: its unload is what that of the first one is compared with.
        endless = greedy("venus", SECOND_MAX_MODEL_LEN)
        seen.look("longest text", lambda: self.http.generate(endless).text)
        room = OVERRIDE_MAX_MODEL_LEN - len(self.oracle.tokenize("venus"))
        seen["longest text expected"] = expected_text(self.oracle, greedy("venus", room))
        started = time.monotonic()
        self.repository.unload(SECOND)
        seen["seconds of the second unload"] = self._until_unavailable(started)
        seen["left after the second unload"] = self._left_after_unload()
        seen["after two lives"] = Footprint.of(self.server)

    def count_after_the_second_load(self) -> None:
        request = greedy("venus", 9)
        requests = [request, request.but(stream=True)]
        self.seen["traffic after the second load"] = sent(
            self.server, SECOND, self.oracle, requests
        )

    def _arguments(self, **changes: Any) -> dict[str, Any]:
        path = str(other_known_answer_model().path)
        arguments = {"model": path, **SECOND_ARGUMENTS, **changes}
        return self.harness.model_spec(SECOND, arguments).engine_args

    def _write(self, config: str = config_with(**METRICS), **changes: Any) -> None:
        spec = self.harness.model_spec(SECOND, self._arguments(**changes), config=config)
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

    def _stubs(self) -> list[ServerProcess]:
        return [process for process in self.server.processes() if is_stub(process, SECOND)]

    def _stub(self) -> Holdings:
        """What the model's stub holds; nothing if there is none."""
        return next((Holdings.of(process) for process in self._stubs()), Holdings())

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


def _refused() -> list[GenerateRequest]:
    """One that a backend refuses by itself, and one that is too long for the engine."""
    text = " venus" * (ENDING_WEIGHT // 6)
    return [GenerateRequest(text, sampling={"temperature": -1}), GenerateRequest(text)]


def _heavy(request: GenerateRequest, weight: int = SOAK_WEIGHT) -> GenerateRequest:
    """The same, with a stop string that no text of the model holds, and an hour's time."""
    assert isinstance(request.sampling, dict)
    sampling = {**request.sampling, "stop": ["~" * weight]}
    return request.but(sampling=sampling, parameters={"timeout": 3_600_000_000})


def _differing(answers: list[str], expected: list[str]) -> list[str]:
    """Those answers that are not what was expected."""
    pairs = zip(answers, expected, strict=True)
    return [f"{got!r} instead of {wanted!r}" for got, wanted in pairs if got != wanted]
