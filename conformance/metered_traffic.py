"""Requests to a model with metrics, and what they add to the server's page."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pytest_vllm_triton.clients import (
    GenerateRequest,
    Generation,
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ServerHandle

from .metrics_page import Growth, MetricsPage, grown_page, quiet_page

_LIMITS = ("max_tokens", "ignore_eos")
LATENCIES = "vllm:e2e_request_latency_seconds_count"


@dataclass(frozen=True)
class MeteredTraffic:
    """Some requests to the model with metrics, and how its page grew.

    Attributes:
        growth: of the page, by the labels of the model.
        input_tokens, output_tokens: of each request, counted in the known answers. The backend's
            own counts are not used, as other requirements check those.
        seconds: of each request, as the client saw it.
    """

    growth: Growth
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def requests(self) -> int:
        return len(self.seconds)


def sent(
    server: ServerHandle, model: str, oracle: KnownAnswer, requests: list[GenerateRequest]
) -> MeteredTraffic:
    """Send the requests one by one and wait until they are on the page."""
    before = quiet_page(server, model)
    answers: list[Generation] = []
    with (
        HttpClient(server.endpoints.http, model) as http,
        GrpcClient(server.endpoints.grpc, model) as grpc,
    ):
        for index, request in enumerate(requests):
            client = grpc if index % 2 else http
            answers.append(client.generate(request).ok())
    return on_the_page(server, before, oracle, answers)


def sent_at_once(
    server: ServerHandle, model: str, oracle: KnownAnswer, requests: list[GenerateRequest]
) -> MeteredTraffic:
    """The same, all requests together."""
    before = quiet_page(server, model)
    with (
        GrpcClient(server.endpoints.grpc, model) as grpc,
        ThreadPoolExecutor(len(requests)) as pool,
    ):
        answers = [answer.ok() for answer in pool.map(grpc.generate, requests)]
    return on_the_page(server, before, oracle, answers)


def on_the_page(
    server: ServerHandle, before: MetricsPage, oracle: KnownAnswer, answers: list[Generation]
) -> MeteredTraffic:
    """Wait until the requests with these answers are on the page."""
    inputs = tuple(len(oracle.tokenize(str(a.request.text_input))) for a in answers)
    outputs = tuple(_output_tokens(oracle, answer.request) for answer in answers)
    sequences = sum(_sequences(answer.request) for answer in answers)
    growth = grown_page(
        server,
        before,
        [
            ("vllm:generation_tokens_total", sum(outputs)),
            ("vllm:prompt_tokens_total", sum(inputs)),
            ("vllm:request_params_n_sum", sequences),
            (LATENCIES, len(answers)),
            ("vllm:time_to_first_token_seconds_count", len(answers)),
            ("vllm:time_per_output_token_seconds_count", sum(outputs) - sequences),
            ("vllm:request_prompt_tokens_sum", sum(inputs)),
            ("vllm:request_generation_tokens_sum", sum(outputs)),
        ],
    )
    return MeteredTraffic(growth, inputs, outputs, tuple(answer.seconds for answer in answers))


def _sequences(request: GenerateRequest) -> int:
    assert isinstance(request.sampling, dict)
    return int(request.sampling.get("n", 1))


def _output_tokens(oracle: KnownAnswer, request: GenerateRequest) -> int:
    """Of all sequences, which end by their length or are greedy."""
    assert isinstance(request.sampling, dict)
    limits = {key: request.sampling[key] for key in _LIMITS if key in request.sampling}
    answer = oracle.answer(str(request.text_input), **limits)
    return _sequences(request) * answer.num_output_tokens
