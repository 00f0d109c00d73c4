"""What a report shows of requests and answers, also of a stream that a check drives by itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, GrpcClient
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
