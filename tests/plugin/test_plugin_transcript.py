"""What a report shows of requests and answers, also of a stream that a check drives by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import eventually

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, GrpcClient, HttpClient, Unanswered
from pytest_vllm_triton.transcript import Excerpt, Transcript


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each request of a stream with an error that tells its id."""

    def ModelStreamInfer(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:
        for request in requests:
            yield service_pb2.ModelStreamInferResponse(
                error_message=f"no answer to {request.id}", infer_response={"id": request.id}
            )


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


class OneEvent(BaseHTTPRequestHandler):
    """Answers with an event stream of a single error, or breaks off before its promised end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.path == "/breaks":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'data: {"error": "no answer to one"}\n\n')

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), OneEvent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_stream_of_a_check_is_in_the_transcript(address: str) -> None:
    transcript = Transcript()
    with GrpcClient(address, "model", transcript) as client, client.open() as stream:
        for name in ("first", "second"):
            stream.send(GenerateRequest(f"prompt {name}", id=name))
        stream.half_close()
        answers = [response.error for response in stream]
    assert answers == ["no answer to first", "no answer to second"]
    (exchange,) = transcript.exchanges
    for part in ("id=first", "prompt first", "id=second", "prompt second"):
        assert part in exchange.request
    assert exchange.response.startswith("OK, 2 response(s): id=first error: no answer to first;")


def test_cancelled_stream_leaves_no_thread(address: str) -> None:
    """Checks cancel many at once, and not each within a `with`."""
    with GrpcClient(address, "model") as client:
        with client.open() as one, client.open() as other:  # the server has its two threads then
            for stream in (one, other):
                stream.send(GenerateRequest("prompt"))
                next(iter(stream))
        before = set(threading.enumerate())
        stream = client.open()
        stream.send(GenerateRequest("prompt"))
        next(iter(stream))
        assert set(threading.enumerate()) - before
        stream.cancel()
        assert eventually(lambda: not set(threading.enumerate()) - before, 10)


def test_check_that_fails_within_a_stream_shows_what_came(address: str) -> None:
    transcript = Transcript()

    def check() -> None:
        with GrpcClient(address, "model", transcript) as client, client.open() as stream:
            stream.send(GenerateRequest("prompt", id="one"))
            for response in stream:
                expect.equal("error", response.error, None)

    with pytest.raises(expect.Violation):
        check()
    assert "no answer to one" in transcript.exchanges[0].response


def test_check_that_fails_within_an_answer_shows_what_came(url: str) -> None:
    transcript = Transcript()

    def check() -> None:
        with HttpClient(url, "model", transcript) as client, client.opened("GET", "/") as answer:
            for _, event in answer.events():
                expect.equal("event", event, b"data: {}")

    with pytest.raises(expect.Violation):
        check()
    response = transcript.exchanges[0].response
    assert response.startswith("200 data: ")
    assert "no answer to one" in response
    assert "\nViolation: event" in response


def test_answer_that_breaks_off_shows_what_came(url: str) -> None:
    transcript = Transcript()
    with HttpClient(url, "model", transcript) as client, pytest.raises(Unanswered):
        client.get("/breaks")
    response = transcript.exchanges[0].response
    assert response.startswith("200 data: ")
    assert "\nUnanswered: GET /breaks" in response


def test_request_without_an_answer_shows_why() -> None:
    transcript = Transcript()
    nobody = "http://127.0.0.1:1"
    with HttpClient(nobody, "model", transcript) as client, pytest.raises(Unanswered):
        client.get("/")
    assert transcript.exchanges[0].response.startswith("Unanswered: GET /")


def test_only_what_may_crash_triton_is_a_risk(address: str) -> None:
    ended, cancelled, strict = Transcript(), Transcript(), Transcript()
    request = GenerateRequest("prompt")
    with GrpcClient(address, "model", ended) as client:
        client.generate(request)
    with GrpcClient(address, "model", cancelled) as client, client.open() as stream:
        stream.send(request)
        next(iter(stream))
        stream.cancel()
    with GrpcClient(address, "model", strict, deadline=1.0) as client, pytest.raises(Unanswered):
        client.until_error(request)
    risks = [transcript.triton_may_crash for transcript in (ended, cancelled, strict)]
    assert risks == [False, True, True]


def test_excerpt_keeps_both_ends() -> None:
    excerpt: Excerpt[int] = Excerpt()
    for number in range(100):
        excerpt.add(number)
    assert excerpt.count == 100
    assert excerpt.shown(str) == "0; 1; 2; 3; 4; 5; …[88 more]…; 94; 95; 96; 97; 98; 99"


def test_short_excerpt_is_whole() -> None:
    excerpt: Excerpt[int] = Excerpt()
    for number in range(12):
        excerpt.add(number)
    assert excerpt.shown(str) == "; ".join(map(str, range(12)))
