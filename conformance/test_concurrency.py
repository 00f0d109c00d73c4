"""CON: the engine gets all requests at once and batches them."""

from __future__ import annotations

import time

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, GrpcClient, HttpClient
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .engine_limits import needs_many_sequences
from .experiments.second_model import QUEUE
from .extra_models import ONE_VECTOR
from .metrics_page import metrics_page
from .record import Seen
from .traffic import (
    at_once,
    expect_told_alike,
    first_of,
    greedy,
    on_one_stream,
    pieces,
    text_or_error,
)
from .waits import crowd_deadline, until

# More than any pool of threads or queue of a backend is likely to hold.
CROWD = 300
TAKEN_SECONDS = 30.0
# Fewer than vLLM takes at once of its own accord, more than a careful backend may allow.
ENGINE_CROWD = 48
# What a request for one token may take beside its way to the server and back, and how many tokens'
# time the work around that token may cost.
HELD_BACK_SECONDS = 0.05
TOKENS_WORTH = 10
# The tiny encoder takes a few thousandths.
ENCODER_SECONDS = 0.03


@pytest.mark.requirement("CON-001")
def test_requests_are_batched(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    """Compared with the same requests one after another, as fast as this host is right now."""
    needs_many_sequences(vllm_harness)
    requests = [greedy(f"number {i}", 64) for i in range(32)]
    ratios = []
    for _ in range(3):
        started = time.monotonic()
        texts = [text_or_error(triton_grpc.generate(request)) for request in requests]
        one_by_one = time.monotonic() - started
        started = time.monotonic()
        together = at_once(triton_grpc.generate, requests, len(requests))
        ratios.append((time.monotonic() - started) / one_by_one)
        expect_told_alike("texts of requests sent at once", vllm_model, requests, together, texts)
        if ratios[-1] < 0.5:
            return
    expect.between("time of 32 at once / one after another", min(ratios), 0, 0.5)


@pytest.mark.requirement("CON-001")
def test_engine_takes_a_crowd(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    """Each stream begins before any of them ends, so all of them run at the same time."""
    needs_many_sequences(vllm_harness)
    # Short ones may have ended, on a fast GPU, before a backend that stood still took the last.
    for tokens in (250, 500, 1000):
        requests = {
            str(index): greedy(f"number {index}", tokens, stream=True)
            for index in range(ENGINE_CROWD)
        }
        answers = on_one_stream(triton_grpc, requests, crowd_deadline(vllm_model)).values()
        errors = [one.error for responses in answers for one in responses if one.error is not None]
        expect.equal("errors", errors, [])
        answered = [responses for responses in answers if responses]
        expect.equal("streams that were answered", len(answered), ENGINE_CROWD)
        last_began = max(responses[0].at for responses in answered)
        first_ended = min(responses[-1].at for responses in answered)
        if last_began <= first_ended:
            break
    expect.between(
        "seconds until the last stream began, of those until the first one ended",
        last_began,
        0,
        first_ended,
    )


@pytest.mark.requirement("CON-001")
def test_no_request_waits_in_the_server(triton_grpc: GrpcClient, vllm_server: ServerHandle) -> None:
    name = f'nv_inference_pending_request_count{{model="{triton_grpc.model}"'

    def pending() -> list[float]:
        lines = metrics_page(vllm_server).text.splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]

    if not pending():
        untested("this server has no nv_inference_pending_request_count")
    with triton_grpc.open() as stream:
        for index in range(CROWD):
            stream.send(greedy(f"number {index}", 1500, stream=True))
        first_of(stream)
        # All of them together run for minutes: one after the other they would wait for long.
        none_waits = until(lambda: sum(pending()) == 0, TAKEN_SECONDS)
        expect.happened(f"seconds until none of {CROWD} is pending", none_waits, TAKEN_SECONDS)
        stream.cancel()


@pytest.mark.requirement("CON-001")
def test_three_hundred_at_once(triton_grpc: GrpcClient, vllm_model: ModelUnderTest) -> None:
    """Half of them streaming, on one gRPC stream."""
    words = ("alpha", "golf", "mike", "tango")
    asked = [
        greedy(f"number {i} {words[i % 4]}", 16).but(exclude_input_in_output=True)
        for i in range(CROWD)
    ]
    alone = [triton_grpc.generate(request).text for request in asked[: len(words)]]
    requests = {
        str(index): request.but(stream=index % 2 == 0) for index, request in enumerate(asked)
    }
    answers = on_one_stream(triton_grpc, requests, crowd_deadline(vllm_model)).values()
    texts = ["".join(pieces(responses)) for responses in answers]
    ended = [responses for responses in answers if any(one.final for one in responses)]
    expect.equal("requests that were answered to the end", len(ended), CROWD)
    if vllm_model.known_answer is not None:
        expect.equal("texts, by request", texts, alone * (CROWD // len(words)))


@pytest.mark.requirement("CON-001")
def test_a_thousand_wait(second_model_life: Seen) -> None:
    """The second model has eight sequences at a time, which are busy when the others come."""
    seen = second_model_life
    expect.equal("errors of requests that waited", seen["errors of a thousand"], set())
    expect.equal("requests that were answered", seen["answers of a thousand"], QUEUE)


@pytest.mark.requirement("CON-002")
def test_short_request_overtakes_a_long_one(triton_grpc: GrpcClient, vllm_harness: Harness) -> None:
    needs_many_sequences(vllm_harness)
    # A backend that stood still between the two may have answered the long one.
    for _ in range(3):
        order = []
        with triton_grpc.open() as stream:
            stream.send(greedy("Say alpha", 1000).but(id="long"))
            stream.send(greedy("Say alpha", 4).but(id="short"))
            stream.half_close()
            for response in stream:
                expect.equal("error", response.error, None)
                order.append(response.id)
        if order == ["short", "long"]:
            break
    expect.equal("order of the answers", order, ["short", "long"])


@pytest.mark.requirement("CON-006")
def test_urgent_request_goes_first(triton_grpc: GrpcClient, alternate_model: str) -> None:
    """The alternate model has one sequence at a time. While one runs, three others wait."""

    def ask(name: str, tokens: int, priority: int) -> GenerateRequest:
        sampling = {"max_tokens": tokens, "ignore_eos": True, "priority": priority}
        return GenerateRequest("venus", stream=True, sampling=sampling, id=name)

    client = triton_grpc.for_model(alternate_model)
    error = client.generate(ask("any", 1, 1)).error
    if error is not None and "priority" in error:
        untested(f"requests have no priority: {error}")
    # A backend that stood still may have taken the third when the first had ended.
    for _ in range(3):
        order = []
        with client.open() as stream:
            stream.send(ask("running", 500, -9))
            expect.equal("error", first_of(stream).error, None)
            stream.send(ask("last", 4, 5))
            stream.send(ask("later", 4, 0))
            stream.send(ask("sooner", 4, -5))
            stream.half_close()
            for response in stream:
                expect.equal("error", response.error, None)
                if response.final:
                    order.append(response.id)
        if order == ["running", "sooner", "later", "last"]:
            break
    expect.equal("order in which they end", order, ["running", "sooner", "later", "last"])


def seconds_of_a_lone_request(grpc: GrpcClient, http: HttpClient) -> float:
    """What a request for one token may take on this host, as fast as it is right now."""
    many = 100
    stream = min(grpc.generate(greedy("alpha", many)).ok().seconds for _ in range(5))
    road = min(http.get("/v2/health/live").seconds for _ in range(5))
    return HELD_BACK_SECONDS + road + TOKENS_WORTH * stream / many


@pytest.mark.requirement("CON-004")
def test_lone_request_is_not_held_back(triton_grpc: GrpcClient, triton_http: HttpClient) -> None:
    """The quickest of some: whatever else this host does only makes them slower."""
    limit = seconds_of_a_lone_request(triton_grpc, triton_http)
    one = greedy("alpha", 1)
    seconds = min(triton_grpc.generate(one).ok().seconds for _ in range(30))
    expect.between("seconds of a request for one token", seconds, 0, limit)
    two = greedy("alpha", 2, stream=True)
    first = min(triton_grpc.generate(two).ok().responses[0].at for _ in range(30))
    expect.between("seconds to the first response of a stream", first, 0, limit)
    # Nor is the beginning of a longer one, whose last response is far off.
    many = greedy("alpha", 60, stream=True)
    first = min(triton_grpc.generate(many).ok().responses[0].at for _ in range(15))
    expect.between("seconds to the first of many responses", first, 0, limit)


@pytest.mark.requirement("CON-004")
def test_lone_embedding_is_not_held_back(
    triton_grpc: GrpcClient, triton_http: HttpClient, embedding_model: str
) -> None:
    client = triton_grpc.for_model(embedding_model)
    limit = seconds_of_a_lone_request(triton_grpc, triton_http) + ENCODER_SECONDS
    seconds = min(client.generate(ONE_VECTOR).ok().seconds for _ in range(20))
    expect.between("seconds of an embedding of one word", seconds, 0, limit)


@pytest.mark.requirement("CON-003")
def test_more_requests_than_fit(second_model_life: Seen) -> None:
    """64 at once, 8 run at a time, and the cache holds less than those 8 need."""
    seen = second_model_life
    expect.equal("texts by request", seen["crowd"], seen["crowd expected"])


@pytest.mark.requirement("CON-005")
def test_one_more_than_may_be_in_flight(second_model_life: Seen) -> None:
    seen = second_model_life
    expect.that("error of one too many", seen["one too many"].error, bool, "an error")
    expect.equal(
        "requests that ended before it", seen["ended before one too many was answered"], []
    )
    # Triton 24.10 says 400 for any error of a model, and keeps its code to itself.
    status = seen["HTTP answer to one too many"].status
    expect.between("HTTP status of another", status, 400, 599)
    refusal = seen["gRPC answer to one too many"]
    expect.equal(f"gRPC status of another ({refusal.error})", refusal.status, "UNAVAILABLE")


@pytest.mark.requirement("CON-005")
def test_as_many_as_may_be_in_flight(second_model_life: Seen) -> None:
    """They are answered while further ones are refused, and then there is room again."""
    seen = second_model_life
    expect.equal(
        "texts of as many",
        seen["texts of as many as may be in flight"],
        seen["texts expected of as many"],
    )
    expect.equal(
        "text afterwards", seen["text after one too many"], seen["text expected after one too many"]
    )
