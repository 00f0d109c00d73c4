"""CAN: a request that nobody waits for leaves the engine at once.

The alternate model runs one sequence at a time. So whether a long request has left the engine shows
in how soon a short one is answered, and any backend can be checked. The log is read only for the
lines that CAN-002 and CAN-011 name.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
    GrpcStream,
    HttpClient,
    Unanswered,
)
from pytest_vllm_triton.clients.grpc import NO_PROXY, infer_request
from pytest_vllm_triton.clients.http import http_body
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .alternate import MAX_MODEL_LEN
from .engine_limits import needs_context, needs_many_sequences
from .logs import log_of
from .marks import UNARY_AND_STREAM
from .metrics_page import MetricsPage, settled_page
from .processes import serving_pids
from .traffic import (
    STREAM_TOKENS,
    at_once,
    by_id,
    expect_told_alike,
    first_of,
    greedy,
    on_one_stream,
    pieces,
    second_oracle,
)
from .waits import GONE_SECONDS, until

# Where the requirement says 2 s, and where it says 5 s or nothing.
CANCEL_NOTICED_SECONDS = 2.0
ABORTED_SECONDS = 5.0
# A call that its client cancelled ends at once, without the server.
CALL_ENDED_SECONDS = 1.0
STREAM_DEADLINE = 60.0
PROMPT = "mercury"
SHORT = GenerateRequest(PROMPT, sampling={"temperature": 0, "max_tokens": 4})
LONG_TOKENS = 3900
LONG = greedy(PROMPT, LONG_TOKENS)
# Of some thousand characters: such a prompt is on its way into the engine for a while.
WORDY = greedy(" venus" * 500, LONG_TOKENS - 500)
LONG_STREAM = LONG.but(stream=True)
# The same with two sequences.
LONG_TWICE = LONG.but(
    sampling={"temperature": 1, "n": 2, "max_tokens": LONG_TOKENS, "ignore_eos": True}
)
NUMBER_OF_SEQUENCES = pytest.mark.parametrize("request_", [LONG, LONG_TWICE], ids=["1", "2"])
LOG_SECONDS, GAUGE_SECONDS, UNTIL_BUSY_SECONDS = 5.0, 10.0, 10.0
# Streams that go on while one is cancelled, as many as run at once in an engine of vLLM's own
# settings; tokens of each by which their pace is taken; the time until the cancellation shows; and
# requests that may have to wait for those.
CROWD_STREAMS, CROWD_SAMPLE, SHOWN_SECONDS = 70, 20, CANCEL_NOTICED_SECONDS + 1.0
QUEUE = 200
# Refused at once: what came before it on its stream has been taken by then.
REFUSED = GenerateRequest(PROMPT, stream=True, sampling={"max_tokens": -1}, id="refused")
# More streams than a backend is likely to serve one by one, of tokens that take longer than half a
# second.
TIMED, TIMED_TOKENS = 32, 600
STORM, STORM_SECONDS = 100, 2 * ABORTED_SECONDS
CANCELLING = "[vllm] Cancelling the request"
CANCELLED = "[vllm] Successfully cancelled the request"


@dataclass(frozen=True)
class Pace:
    """What requests take when the engine has nothing else to do.

    Attributes:
        short_seconds: a short one, from its sending to its answer.
        long_seconds: about what a long one takes.
        prefill_seconds: one whose prompt fills the context.
    """

    short_seconds: float
    long_seconds: float
    prefill_seconds: float


@dataclass(frozen=True)
class OneAtATime(Pace):
    """The model that runs one sequence at a time.

    Attributes:
        grpc, http: its clients.
        short_text: what a short request is answered.
    """

    grpc: GrpcClient
    http: HttpClient
    short_text: str

    @property
    def enough(self) -> int:
        """How many long requests keep the engine busy for twice `ABORTED_SECONDS`.

        If fewer ran on, the engine could be free in time without any being aborted.
        """
        return math.ceil(2 * ABORTED_SECONDS / self.long_seconds)

    def enough_prefills(self, first: int) -> list[GenerateRequest]:
        """As many that are nearly all prefill. `first`: see `prompt_that_fills_the_context`."""
        count = math.ceil(2 * ABORTED_SECONDS / self.prefill_seconds)
        return [*map(prompt_that_fills_the_context, range(first, first + count))]

    def expect_free(self, after: str, within: float = ABORTED_SECONDS) -> None:
        """The engine takes the next request at once, so nothing runs or waits before it."""
        answer = self.grpc.generate(SHORT).ok()
        seconds = answer.seconds
        limit = within + self.short_seconds
        expect.between(
            f"seconds until a short request is answered after {after}", seconds, 0, limit
        )
        expect.equal(
            f"text of a short request after {after}", answer.text, PROMPT + self.short_text
        )


def prompt_that_fills_the_context(index: int) -> GenerateRequest:
    """Another index is another prompt, from its start on, or the prefix cache would have it."""
    return SHORT.but(text_input=f"{index}" + " venus" * (MAX_MODEL_LEN - 100))


@pytest.fixture(scope="module")
def pace(vllm_server: ServerHandle, alternate_model: str) -> Pace:
    """The quickest of some, because whatever else this host does only makes them slower."""
    some_tokens = LONG.but(sampling={"temperature": 0, "max_tokens": 200, "ignore_eos": True})
    with GrpcClient(vllm_server.endpoints.grpc, alternate_model) as client:
        # vLLM on CPUs compiles its sampler when it is first needed, for ten seconds.
        client.generate(SHORT.but(sampling={"temperature": 1, "n": 2, "max_tokens": 2}))

        def seconds(*requests: GenerateRequest) -> float:
            return min(client.generate(request).ok().seconds for request in requests)

        return Pace(
            short_seconds=seconds(SHORT, SHORT, SHORT),
            long_seconds=seconds(some_tokens, some_tokens, some_tokens) * LONG_TOKENS / 200,
            prefill_seconds=seconds(*map(prompt_that_fills_the_context, range(3))),
        )


@pytest.fixture
def engine(
    triton_grpc: GrpcClient, triton_http: HttpClient, alternate_model: str, pace: Pace
) -> OneAtATime:
    if pace.long_seconds < 2 * CANCEL_NOTICED_SECONDS:
        untested(f"the long request takes {pace.long_seconds:.1f} s here: too short to tell")
    text = second_oracle().answer(PROMPT, max_tokens=4).text
    client = triton_grpc.for_model(alternate_model)
    # Waits for what an earlier check may have left in the engine, and takes what it may have left
    # in the backend.
    if client.generate(SHORT).error is not None:
        client.generate(SHORT).ok()
    http = triton_http.for_model(alternate_model)
    return OneAtATime(**asdict(pace), grpc=client, http=http, short_text=text)


@pytest.mark.requirement("CAN-001")
def test_unary_call_ends_as_cancelled(engine: OneAtATime) -> None:
    """With tritonclient, as users cancel: stop_stream(cancel_requests=True)."""
    import queue

    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    results: queue.SimpleQueue[tuple[object, InferenceServerException | None]] = queue.SimpleQueue()
    with InferenceServerClient(engine.grpc.address, channel_args=[NO_PROXY]) as client:
        client.start_stream(
            lambda result, error: results.put((result, error)), stream_timeout=STREAM_DEADLINE
        )
        client.async_stream_infer(engine.grpc.model, _triton_inputs(LONG), request_id="1")
        wait_until_busy(engine)
        client.stop_stream(cancel_requests=True)
        seconds = until(lambda: not results.empty(), CALL_ENDED_SECONDS)
        expect.happened("seconds until the call ends", seconds, CALL_ENDED_SECONDS)
        result, error = results.get()
    expect.equal("result", result, None)
    expect.that(
        "error", error, lambda e: e is not None and "CANCELLED" in str(e.status()), "CANCELLED"
    )
    expect.equal("further answers", results.qsize(), 0)


@pytest.mark.requirement("CAN-002")
@NUMBER_OF_SEQUENCES
def test_cancelled_unary_request_leaves_the_engine(
    engine: OneAtATime, request_: GenerateRequest
) -> None:
    def cancel(_: int) -> None:
        with engine.grpc.open() as stream:
            stream.send(request_)
            wait_until_busy(engine)
            stream.cancel()

    expect_soon_free(engine, "cancelling a unary request", cancel)


@pytest.mark.requirement("CAN-015")
@UNARY_AND_STREAM
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_timeout_of_the_request(engine: OneAtATime, protocol: str, stream: bool) -> None:
    """Half a second, in microseconds, for a request that takes longer.

    Of an HTTP request Triton 24.10 makes no timeout of the parameter; and the tensor beside it wins
    over those parameters only that are for sampling.
    """
    clients: dict[str, GrpcClient | HttpClient] = {"grpc": engine.grpc, "http": engine.http}
    request = LONG.but(stream=stream, parameters={"timeout": 500_000})
    most = 0.5 + CANCEL_NOTICED_SECONDS
    # A host that stands still for seconds makes any one late.
    for _ in range(2):
        answer = clients[protocol].generate(request)
        expect.that("error", answer.error, bool, "an error")
        engine.expect_free("a request's own timeout")
        if answer.seconds <= most:
            break
    expect.between("seconds until the error", answer.seconds, 0.4, most)


@pytest.mark.requirement("CAN-015")
def test_timeouts_of_many(triton_grpc: GrpcClient, vllm_harness: Harness) -> None:
    """Of so many streams at once that a backend has other things to do when they are due."""
    needs_many_sequences(vllm_harness)
    needs_context(vllm_harness, TIMED_TOKENS + 100)
    request = greedy(PROMPT, TIMED_TOKENS, stream=True).but(parameters={"timeout": 500_000})
    requests = {str(index): request for index in range(TIMED)}
    answers = on_one_stream(triton_grpc, requests, STREAM_DEADLINE)
    went_on = [
        name for name, responses in answers.items() if all(r.error is None for r in responses)
    ]
    expect.equal("requests that did not end with an error", went_on, [])


@pytest.mark.requirement("ERR-019")
def test_status_of_a_timeout(engine: OneAtATime) -> None:
    answer = engine.grpc.until_error(LONG.but(parameters={"timeout": 500_000}))
    if answer.status == "OK":
        untested("requests have no time-out here, which is CAN-015's")
    statuses = ("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
    expect.one_of(f"gRPC status ({answer.error})", answer.status, statuses)


@pytest.mark.requirement("CAN-002")
def test_cancellation_is_in_the_log(engine: OneAtATime, vllm_server: ServerHandle) -> None:
    log = log_of(vllm_server)
    since = log.position()
    with engine.grpc.open() as stream:
        stream.send(LONG_STREAM)
        first_of(stream)
        stream.cancel()
    until(lambda: CANCELLED in log.read(since), LOG_SECONDS)
    for line in (CANCELLING, CANCELLED):
        expect.contains("log since the request", log.read(since), line)


@pytest.mark.requirement("CAN-002")
def test_one_of_a_crowd_is_cancelled(
    triton_grpc: GrpcClient, vllm_server: ServerHandle, vllm_harness: Harness
) -> None:
    """The others go on: what is done for them must not hide it."""
    needs_many_sequences(vllm_harness)
    expect_cancelled_among(Crowd(triton_grpc, vllm_server))


@pytest.mark.requirement("CAN-007")
def test_one_of_a_queue_is_cancelled(
    triton_grpc: GrpcClient, vllm_server: ServerHandle, vllm_harness: Harness
) -> None:
    """The last of those that wait, if the engine does not run them all."""
    needs_many_sequences(vllm_harness)
    expect_cancelled_among(Crowd(triton_grpc, vllm_server, QUEUE))


@pytest.mark.requirement("CAN-003")
@NUMBER_OF_SEQUENCES
def test_cancelled_stream_leaves_the_engine(engine: OneAtATime, request_: GenerateRequest) -> None:
    def cancel(_: int) -> None:
        with engine.grpc.open() as stream:
            stream.send(request_.but(stream=True))
            responses = iter(stream)
            first_of(responses)
            stream.cancel()
            expect.equal("errors after the cancel", [r.error for r in responses if r.error], [])
        expect.equal("gRPC status", stream.status, "CANCELLED")

    expect_soon_free(engine, "cancelling a stream after its first token", cancel)


@pytest.mark.requirement("CAN-004")
@pytest.mark.asyncio(loop_scope="function")
async def test_aio_iterator_cancel(engine: OneAtATime) -> None:
    from tritonclient.grpc.aio import InferenceServerClient

    async def requests() -> AsyncIterator[dict[str, object]]:
        for _ in range(engine.enough):
            yield {"model_name": engine.grpc.model, "inputs": _triton_inputs(LONG_STREAM)}

    async with InferenceServerClient(engine.grpc.address, channel_args=[NO_PROXY]) as client:
        responses = client.stream_infer(requests(), stream_timeout=STREAM_DEADLINE)
        _, error = await responses.__anext__()
        expect.equal("error of the first response", error, None)
        expect.equal("cancel()", responses.cancel(), True)
        with expect.raises("the rest of the stream", asyncio.CancelledError):
            async for _ in responses:
                pass
    await asyncio.to_thread(engine.expect_free, "cancelling an asyncio stream")


_DOOMED_CLIENT = f"""
import sys
from tritonclient.grpc import service_pb2, service_pb2_grpc
import grpc
message = service_pb2.ModelInferRequest.FromString(sys.stdin.buffer.read())
channel = grpc.insecure_channel(sys.argv[1], options=[{NO_PROXY!r}])
stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
messages = [message] * int(sys.argv[2])
for response in stub.ModelStreamInfer(iter(messages), timeout=float(sys.argv[3])):
    print("response", flush=True)
"""


@pytest.mark.requirement("CAN-005")
def test_killed_client(engine: OneAtATime) -> None:
    message = infer_request(engine.grpc.model, LONG_STREAM).SerializeToString()
    with subprocess.Popen(
        [
            *(sys.executable, "-c", _DOOMED_CLIENT),
            *(engine.grpc.address, str(engine.enough), str(STREAM_DEADLINE)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            client.stdin.write(message)
            client.stdin.close()
            expect.equal("first line of the client", client.stdout.readline(), b"response\n")
        finally:
            client.kill()
    engine.expect_free("the SIGKILL of its client")


@pytest.mark.requirement("CAN-006")
def test_deadline_of_the_client(engine: OneAtATime) -> None:
    with engine.grpc.open(deadline=0.5) as stream:
        for _ in range(engine.enough):
            stream.send(LONG)
        with expect.raises("the stream", Unanswered):
            list(stream)
    expect.equal("gRPC status", stream.status, "DEADLINE_EXCEEDED")
    engine.expect_free("the client's deadline")


@pytest.mark.requirement("CAN-007")
def test_queued_requests_are_removed(engine: OneAtATime) -> None:
    """One runs while others wait. They are cancelled, and then it: another is served at once.

    A backend that only aborts what has begun works through the prompts of all that waited.
    """

    def cancel(attempt: int) -> None:
        with engine.grpc.open() as running, engine.grpc.open() as queued:
            running.send(LONG_STREAM)
            first_of(running)
            for request in engine.enough_prefills(1000 + 500 * attempt):
                queued.send(request.but(stream=True))
            queued.send(REFUSED)
            expect.that("error of max_tokens -1", first_of(queued).error, bool, "some")
            queued.cancel()
            expect.equal("responses of the queued requests", list(queued), [])
            running.cancel()

    expect_soon_free(engine, "cancelling the running and the waiting requests", cancel)


@pytest.mark.requirement("CAN-008")
@UNARY_AND_STREAM
def test_cancel_during_the_prefill(engine: OneAtATime, stream: bool) -> None:
    """Prompts of which the engine takes a few tokens at each step, one after the other.

    A backend that notices the cancel with the first token works through all that are left.
    """

    def cancel(attempt: int) -> None:
        with engine.grpc.open() as doomed:
            for request in engine.enough_prefills((3000 if stream else 2000) + 500 * attempt):
                doomed.send(request.but(stream=stream))
            wait_until_busy(engine)
            doomed.cancel()

    expect_soon_free(engine, "cancelling prompts during their prefill", cancel)


@pytest.mark.requirement("CAN-009")
def test_the_others_go_on(triton_grpc: GrpcClient, vllm_model: ModelUnderTest) -> None:
    """One of them has the same id as the cancelled one: ids are the client's own affair."""
    sampling = {"temperature": 0, "max_tokens": 300, "ignore_eos": True}
    prompts = ["Say alpha", "Say lima", "Say tango", "Say uniform"]
    requests = [GenerateRequest(p, stream=True, sampling=sampling) for p in prompts]
    baseline = [triton_grpc.generate(request).text for request in requests[1:]]
    with triton_grpc.open() as doomed, triton_grpc.open() as others:
        names = ("1", "2", "3")
        for request, name in zip(requests[1:], names, strict=True):
            others.send(request.but(id=name))
        others.half_close()
        doomed.send(requests[0].but(id="1"))
        first_of(doomed)
        doomed.cancel()
        answers = by_id(others, names)
    texts = ["".join(pieces(responses)) for responses in answers.values()]
    expect_told_alike("texts of the other requests", vllm_model, requests[1:], texts, baseline)


@pytest.mark.requirement("CAN-010")
def test_one_cancel_for_five_requests(engine: OneAtATime) -> None:
    with engine.grpc.open() as stream:
        for index in range(5):
            stream.send(LONG_STREAM.but(id=str(index)))
        first_of(stream)
        stream.cancel()
        engine.expect_free("cancelling five requests of one stream")


@pytest.mark.requirement("CAN-011")
def test_cancel_after_the_end_does_nothing(engine: OneAtATime) -> None:
    with engine.grpc.open() as stream:
        stream.send(SHORT)
        stream.half_close()
        responses = list(stream)
        stream.cancel()
    expect.equal("gRPC status", stream.status, "OK")
    expect.equal("errors", [r.error for r in responses if r.error], [])
    engine.expect_free("a cancel that came too late")


@pytest.mark.requirement("CAN-011")
def test_cancel_after_the_end_is_not_in_the_log(
    engine: OneAtATime, vllm_server: ServerHandle
) -> None:
    log = log_of(vllm_server)
    since = log.position()
    with engine.grpc.open() as stream:
        stream.send(SHORT)
        stream.half_close()
        list(stream)
        stream.cancel()
    engine.expect_free("a cancel that came too late")
    expect.lacks("log since the request", log.read(since), CANCELLING)


@pytest.mark.requirement("CAN-013")
def test_closed_event_stream(engine: OneAtATime, vllm_server: ServerHandle) -> None:
    content = json.dumps(http_body(LONG_STREAM)).encode()
    path = engine.http.path("generate_stream")

    def hang_up(_: int) -> None:
        with (
            HttpClient(vllm_server.endpoints.http, engine.http.model) as http,
            http.opened("POST", path, content) as stream,
        ):
            first_of(stream.events())

    # One request only: a second one would get no headers before the first has ended.
    within = min(ABORTED_SECONDS, engine.long_seconds / 2)
    expect_soon_free(engine, "closing the connection of an event stream", hang_up, within)


@pytest.mark.requirement("CAN-012")
def test_storm_of_cancels(engine: OneAtATime, vllm_server: ServerHandle) -> None:
    """A hundred requests, streaming and not, cancelled at any time from at once to 0.1 s later.

    Of a single one that is not aborted the engine has work for longer than is waited.
    """
    before = serving_pids(vllm_server, engine.grpc.model)

    def storm(attempt: int) -> None:
        delays = random.Random(attempt)
        kinds = itertools.cycle(
            one.but(stream=stream) for one in (LONG, WORDY) for stream in (False, True)
        )
        waiting: list[tuple[float, GrpcStream]] = []
        for _ in range(STORM):
            stream = engine.grpc.open()
            stream.send(next(kinds))
            waiting.append((time.monotonic() + delays.uniform(0, 0.1), stream))
            while waiting and waiting[0][0] <= time.monotonic():
                waiting.pop(0)[1].cancel()
        for _, stream in waiting:
            stream.cancel()

    def in_the_engine(page: MetricsPage) -> float:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return sum(page.of(engine.grpc.model).value(name) for name in names)

    limit = min(STORM_SECONDS, engine.long_seconds / 2)
    expect_soon_free(engine, f"{STORM} cancelled requests", storm, limit)
    page = settled_page(vllm_server, lambda page: in_the_engine(page) == 0, GAUGE_SECONDS)
    expect.equal("requests that run or wait", in_the_engine(page), 0)
    after = {process.pid for process in vllm_server.processes()}
    expect.equal("stubs and engines that are gone", before - after, set())


def expect_soon_free(
    engine: OneAtATime,
    after: str,
    cancel: Callable[[int], None],
    within: float = CANCEL_NOTICED_SECONDS,
) -> None:
    """The engine is free in time after `cancel`, in one of two attempts (0 and 1): a host that
    stands still for seconds makes any one late."""
    cancel(0)
    try:
        engine.expect_free(after, within)
    except expect.Violation:
        # It has waited for its answer, so the engine is free.
        cancel(1)
        engine.expect_free(after, within)


def expect_cancelled_among(crowd: Crowd) -> None:
    seconds = crowd.seconds_until_logged()
    if seconds is None:  # A host that stands still for seconds makes any one late.
        seconds = crowd.seconds_until_logged()
    expect.happened("seconds until the cancellation is in the log", seconds, SHOWN_SECONDS)


class Crowd:
    """Streams that run while one more is cancelled.

    Attributes:
        queue: further ones that may have to wait for those, before the one that is cancelled.
    """

    def __init__(self, client: GrpcClient, server: ServerHandle, queue: int = 0) -> None:
        self.client = client
        self.log = log_of(server)
        self.queue = queue
        started = time.monotonic()
        at_once(client.generate, [greedy(PROMPT, CROWD_SAMPLE)] * CROWD_STREAMS, CROWD_STREAMS)
        pace = (time.monotonic() - started) / CROWD_SAMPLE
        # No longer than it takes to tell: a backend that forgets them has them run on.
        tokens = min(int(3 * SHOWN_SECONDS / pace), STREAM_TOKENS)
        self.long = greedy(PROMPT, tokens, stream=True)

    def seconds_until_logged(self) -> float | None:
        """From the cancellation on; None if it is not in the log in time."""
        with self.client.open() as others, self.client.open() as one:
            self._send_crowd(others)
            one.send(greedy(PROMPT, STREAM_TOKENS, stream=True))
            if self.queue:
                one.send(REFUSED)
                until_refused(one)
            else:
                first_of(one)
            since = self.log.position()
            one.cancel()
            seconds = until(lambda: CANCELLED in self.log.read(since), SHOWN_SECONDS)
            others.cancel()
        if seconds is None:
            # Lines that are late must not be taken for those of a second attempt.
            everyone = CROWD_STREAMS + self.queue
            until(lambda: self.log.read(since).count(CANCELLED) > everyone, GONE_SECONDS)
        return seconds

    def _send_crowd(self, others: GrpcStream) -> None:
        """Until all of those run that shall, and the rest has been taken."""
        for index in range(CROWD_STREAMS):
            others.send(self.long.but(id=str(index)))
        begun: set[str] = set()
        for response in others:
            expect.equal("error", response.error, None)
            begun.add(response.id)
            if len(begun) == CROWD_STREAMS:
                break
        if self.queue:
            for index in range(self.queue):
                others.send(self.long.but(id=f"queued {index}"))
            others.send(REFUSED)
            until_refused(others)


def until_refused(stream: GrpcStream) -> None:
    """Read on until an error comes, which must be that of `REFUSED`."""
    for response in stream:
        if response.error is not None:
            expect.equal(f"request that fails ({response.error})", response.id, REFUSED.id)
            return
    raise expect.Violation("stream", expect.Words("an error of max_tokens -1"), "its end")


def wait_until_busy(engine: OneAtATime) -> None:
    """Wait until the engine has taken the long request: a short one is not answered meanwhile."""
    deadline = 0.3 + 2 * engine.short_seconds
    give_up = time.monotonic() + UNTIL_BUSY_SECONDS
    while time.monotonic() < give_up:
        try:
            with engine.grpc.open(deadline=deadline) as stream:
                stream.send(SHORT)
                first_of(stream)
        except Unanswered:
            return
    raise expect.Violation(
        "short requests behind a long one",
        expect.Words("one that has to wait"),
        expect.Words("all answered at once"),
    )


def _triton_inputs(request: GenerateRequest) -> list[object]:
    """The request's inputs as tritonclient's own classes."""
    import numpy as np
    from tritonclient.grpc import InferInput

    inputs = []
    for name, value in request.named_inputs().items():
        is_bool = isinstance(value, bool)
        tensor = InferInput(name, [1], "BOOL" if is_bool else "BYTES")
        content = value if is_bool else str(value).encode()
        tensor.set_data_from_numpy(np.array([content], dtype=bool if is_bool else np.object_))
        inputs.append(tensor)
    return inputs
