"""EMB: embeddings of a tiny encoder whose vectors are computed independently."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, Generation, GrpcClient, HttpClient
from pytest_vllm_triton.launchers.base import ServerHandle

from .error_words import NO_VERSIONS, TOO_LONG, UNHEALTHY
from .extra_models import ENCODER, ENCODER_MAX_LEN, ExtraModel
from .logs import expect_not_logged
from .metered_traffic import LATENCIES
from .metrics_page import grown_page, page_with_lines, quiet_page
from .processes import is_stub, kill_engine
from .tiny_encoder import DIMENSIONS, HIDDEN
from .traffic import on_one_stream, pieces
from .waits import GONE_SECONDS, UNLOAD_SECONDS, until

TEXT = "the quick brown fox"
# The model has no token for the first two words; they are in the text all the same.
UNKNOWN_WORDS = "Ünï 你好 fox"
# A thousand characters of fifty tokens: each of the long words is one that it has none for. (vLLM
# takes six characters for each token that fits.)
LONG_TEXT = ("X" * 20 + " ") * 50 + "The Fox"
TOLERANCE = 1e-3


def embedding(given: Any, **pooling: Any) -> GenerateRequest:
    """A request for the vector of a text or of token ids; there is no text_input."""
    content: dict[str, Any] = {"input": given}
    if pooling:
        content["pooling_params"] = pooling
    return GenerateRequest(inputs={"embedding_request": json.dumps(content, ensure_ascii=False)})


def vector_of(answer: Generation) -> list[float]:
    """The vector in an answer's one response."""
    expect.equal("number of responses", len(answer.ok().responses), 1)
    expect.equal("outputs", set(answer.data[0].outputs), {"text_output"})
    expect.equal("number of texts", len(answer.data[0].values("text_output")), 1)
    return vector_in(answer.text)


def vector_in(text: str) -> list[float]:
    """The vector that a text_output writes."""
    vector = expect.json_value("text_output", text)
    numbers = isinstance(vector, list) and all(type(item) is float for item in vector)
    expect.that("text_output", vector, lambda _: numbers, "a list of numbers")
    # As a float32 has them: rounded ones, or those of half precision, lose the order of near texts.
    rounded = all(abs(item - round(item, 7)) < 1e-12 for item in vector)
    rounded = rounded or all(float(np.float16(item)) == item for item in vector)
    expect.that("text_output", vector, lambda _: not rounded, "numbers with all their digits")
    return list(vector)


def close(what: str, actual: list[float], expected: Any) -> None:
    """The vectors have the same length, and no element differs by more than the tolerance."""
    expect.equal(f"dimensions of {what}", len(actual), len(expected))
    difference = float(np.abs(np.asarray(actual) - np.asarray(expected)).max())
    expect.between(f"largest difference of {what}", difference, 0, TOLERANCE)


@pytest.fixture
def generate(triton_client: HttpClient | GrpcClient, embedding_model: str) -> Iterator[Generate]:
    """Send a request to the model that embeds, over HTTP and then over gRPC."""
    with triton_client.for_model(embedding_model) as client:
        yield client.generate


@pytest.mark.requirement("EMB-001")
def test_embedding_is_a_list_of_numbers(generate: Generate) -> None:
    expect.equal("dimensions", len(vector_of(generate(embedding(TEXT)))), HIDDEN)


@pytest.mark.requirement("EMB-002")
@pytest.mark.parametrize(
    "text",
    [TEXT, "a", "tiny words and more of them " * 6, UNKNOWN_WORDS, "The Fox", LONG_TEXT],
    ids=["text", "letter", "words", "unknown-words", "capitals", "long"],
)
def test_vector_is_the_models(generate: Generate, text: str) -> None:
    """Against the same weights in NumPy."""
    expected = ENCODER.embed(ENCODER.tokenize(text))
    close(f"the vector of {text!r}", vector_of(generate(embedding(text))), expected)


@pytest.mark.requirement("EMB-002")
def test_token_ids_give_the_same_vector(generate: Generate) -> None:
    ids = [*ENCODER.tokenize(TEXT), 0]
    close("the vector of token ids", vector_of(generate(embedding(ids))), ENCODER.embed(ids))


@pytest.mark.requirement("EMB-003")
@pytest.mark.parametrize(
    "text", [TEXT, UNKNOWN_WORDS, LONG_TEXT], ids=["text", "unknown-words", "long"]
)
def test_token_counts(generate: Generate, text: str) -> None:
    request = embedding(text).but(returns=("num_input_tokens", "num_output_tokens"))
    answer = generate(request).ok()
    expect.equal(
        "num_input_tokens", answer.all_values("num_input_tokens"), [len(ENCODER.tokenize(text))]
    )
    expect.equal("num_output_tokens", answer.all_values("num_output_tokens"), [0])


@pytest.mark.requirement("EMB-003")
@pytest.mark.parametrize("name", ["num_input_tokens", "num_output_tokens"])
def test_one_count_alone(generate: Generate, name: str) -> None:
    (response,) = generate(embedding(TEXT).but(returns=(name,))).ok().data
    expect.equal("outputs", set(response.outputs), {"text_output", name})


@pytest.mark.requirement("OUT-011")
def test_shapes_of_an_embedding(triton_grpc: GrpcClient, embedding_model: str) -> None:
    request = embedding(TEXT).but(returns=("num_input_tokens", "num_output_tokens"))
    (response,) = triton_grpc.for_model(embedding_model).generate(request).ok().data
    expect.equal(
        "type and shape, by output",
        {name: (tensor.datatype, tensor.shape) for name, tensor in response.outputs.items()},
        {
            "text_output": ("BYTES", (1,)),
            "num_input_tokens": ("UINT32", (1,)),
            "num_output_tokens": ("UINT32", (1,)),
        },
    )


@pytest.mark.requirement("EMB-004")
@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("in_list", [False, True], ids=["number", "list"])
def test_dimensions(generate: Generate, dimensions: int, in_list: bool) -> None:
    """Triton's OpenAI frontend sends the number in a list."""
    asked = [dimensions] if in_list else dimensions
    expected = ENCODER.embed(ENCODER.tokenize(TEXT), dimensions)
    close("the short vector", vector_of(generate(embedding(TEXT, dimensions=asked))), expected)


@pytest.mark.requirement("EMB-004")
@pytest.mark.parametrize("dimensions", [HIDDEN - 1, 0])
def test_unsupported_dimensions(generate: Generate, dimensions: int) -> None:
    error = generate(embedding(TEXT, dimensions=dimensions)).failed()
    expect.clean_error(error)
    expect.contains("error", error.lower(), "dimensions")
    expect.equal("error of the next request", generate(embedding(TEXT)).error, None)


@pytest.mark.requirement("EMB-007")
@pytest.mark.parametrize(
    "content",
    [
        *("{bad", "", "[]", "{}", '{"input": []}', '{"input": {"a": 1}}'),
        *(r'{"input": "\ud800"}', "[" * 100_000),
    ],
    ids=[
        *("json", "empty", "list", "no-input", "no-tokens", "object"),
        *("half-a-character", "deep"),
    ],
)
def test_bad_embedding_request(generate: Generate, content: str) -> None:
    error = generate(GenerateRequest(inputs={"embedding_request": content})).failed()
    expect.clean_error(error)
    expect.equal("error of the next request", generate(embedding(TEXT)).error, None)


@pytest.mark.requirement("EMB-007")
@pytest.mark.parametrize(
    "content",
    [
        *("{bad", "{}", '{"input": "a", "pooling_params": 5}'),
        *(r'{"input": "\ud800"}', "[" * 100_000, b'{"input": "\xff"}'),
    ],
    ids=["json", "no-input", "pooling", "half-a-character", "deep", "utf-8"],
)
def test_bad_embedding_request_is_an_invalid_argument(
    triton_grpc: GrpcClient, embedding_model: str, content: str | bytes
) -> None:
    request = GenerateRequest(inputs={"embedding_request": content})
    answer = triton_grpc.for_model(embedding_model).until_error(request)
    expect.equal(f"gRPC status ({answer.error})", answer.status, "INVALID_ARGUMENT")


@pytest.mark.requirement("EMB-007")
@pytest.mark.parametrize("given", [["a"], [1.5], [[5]]], ids=["text", "fraction", "list"])
def test_what_is_no_token_id(generate: Generate, given: list[Any]) -> None:
    expect.clean_error(generate(embedding(given)).failed())
    expect.equal("error of the next request", generate(embedding(TEXT)).error, None)


@pytest.mark.requirement("ERR-015")
@pytest.mark.parametrize("given", [[5] * (ENCODER_MAX_LEN + 9), "a " * (ENCODER_MAX_LEN + 9)])
def test_input_longer_than_the_limit(generate: Generate, given: Any) -> None:
    error = generate(embedding(given)).failed()
    expect.matches("error", error, rf"{TOO_LONG}|{ENCODER_MAX_LEN}")
    expect.clean_error(error)
    expect.equal("error of the next request", generate(embedding(TEXT)).error, None)


@pytest.mark.requirement("EMB-007")
@pytest.mark.parametrize(
    "request_", [embedding(""), embedding(TEXT, colour="red")], ids=["empty", "unknown-key"]
)
def test_odd_embedding_request(generate: Generate, request_: GenerateRequest) -> None:
    """A backend may take it or refuse it."""
    answer = generate(request_)
    if answer.error is None:
        expect.equal("dimensions", len(vector_of(answer)), HIDDEN)
    else:
        expect.clean_error(answer.error)


@pytest.mark.requirement("EMB-008")
def test_many_at_once(triton_grpc: GrpcClient, embedding_model: str) -> None:
    """32 on one stream, every second one as token ids: each vector belongs to its own text."""
    texts = [f"number {chr(ord('a') + index % 26) * (1 + index)}" for index in range(32)]
    requests = {
        str(index): embedding(ENCODER.tokenize(text) if index % 2 else text)
        for index, text in enumerate(texts)
    }
    answers = on_one_stream(triton_grpc.for_model(embedding_model), requests).values()
    for text, responses in zip(texts, answers, strict=True):
        actual = vector_in("".join(pieces(responses)))
        close(f"the vector of {text!r}", actual, ENCODER.embed(ENCODER.tokenize(text)))


@pytest.mark.requirement("MET-002", "MET-004", "MET-005", "MET-006")
def test_embeddings_are_counted(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, embedding_model: str
) -> None:
    """An embedding has prompt tokens and a latency, and generates nothing."""
    requests = [embedding(text).but(returns=("num_input_tokens",)) for text in (TEXT, "a", "fox")]
    with triton_grpc.for_model(embedding_model) as client:
        client.generate(requests[0]).ok()
        lines = page_with_lines(vllm_server, embedding_model).vllm_lines(embedding_model)
        expect.that("metrics of a model that embeds", lines, bool, "some")
        before = quiet_page(vllm_server, embedding_model)
        answers = [client.generate(request).ok() for request in requests]
    tokens = sum(answer.last("num_input_tokens") for answer in answers)
    expected = {
        "vllm:prompt_tokens_total": tokens,
        "vllm:request_prompt_tokens_sum": tokens,
        "vllm:request_prompt_tokens_count": len(requests),
        LATENCIES: len(requests),
    }
    growth = grown_page(vllm_server, before, [*expected.items()])
    for name, amount in expected.items():
        expect.equal(f"growth of {name}", growth.of(name), amount)


@pytest.mark.requirement("MET-008")
def test_buckets_reach_the_length_of_the_context(
    vllm_server: ServerHandle, triton_grpc: GrpcClient, embedding_model: str
) -> None:
    """The encoder's, 200, is itself one of the bounds."""
    name = "vllm:request_prompt_tokens"
    triton_grpc.for_model(embedding_model).generate(embedding(TEXT)).ok()
    page = page_with_lines(vllm_server, embedding_model).of(embedding_model)
    bounds = [float(bound) for bound in page.buckets(name)]
    expect.equal(f"bounds of {name}", bounds, [1, 2, 5, 10, 20, 50, 100, 200, math.inf])


@pytest.mark.requirement("CAN-015")
def test_timeout_of_an_embedding(generate: Generate) -> None:
    """A microsecond, which no embedding takes."""
    answer = generate(embedding(LONG_TEXT).but(parameters={"timeout": 1}))
    expect.clean_error(answer.failed())
    expect.equal("error of the next request", generate(embedding(TEXT)).error, None)


@pytest.mark.requirement("GEN-030")
def test_embedded_text_is_not_in_the_log(generate: Generate, vllm_server: ServerHandle) -> None:
    secret = "secret to embed"
    expect_not_logged(vllm_server, secret, lambda: generate(embedding(secret)))


@pytest.mark.requirement("EMB-005")
def test_text_from_an_embedding_model(generate: Generate, embedding_model: str) -> None:
    error = generate(GenerateRequest("Hello")).failed()
    text = f"Model {embedding_model} does not support 'generate' request"
    expect.contains("error", error, text)


@pytest.mark.requirement("EMB-005")
def test_embedding_from_a_text_model(triton_http: HttpClient, triton_grpc: GrpcClient) -> None:
    for client in (triton_http, triton_grpc):
        text = f"Model {client.model} does not support 'embed' request"
        expect.contains("error", client.generate(embedding(TEXT)).failed(), text)
        expect.equal("error of the next request", client.generate(GenerateRequest("a")).error, None)


@pytest.mark.requirement("EMB-006")
def test_model_unloads_after_a_task_mismatch(
    triton_grpc: GrpcClient, embedding_extra: ExtraModel, embedding_model: str
) -> None:
    before = set(embedding_extra.server.processes())
    triton_grpc.for_model(embedding_model).generate(GenerateRequest("Hello")).failed()
    embedding_extra.unload().ok()

    def state() -> str:
        entry = embedding_extra.repository.index().get(embedding_model, {})
        return str(entry.get("state"))

    until(lambda: state() == "UNAVAILABLE", UNLOAD_SECONDS)
    expect.equal("state of the model", state(), "UNAVAILABLE")
    until(lambda: len(before - set(embedding_extra.server.processes())) >= 1, UNLOAD_SECONDS)
    gone = before - set(embedding_extra.server.processes())
    expect.that("processes that ended", len(gone), bool, "at least the stub's")


@pytest.mark.requirement("HLT-004")
def test_unhealthy_engine_unloads_the_model_that_embeds(
    triton_grpc: GrpcClient, embedding_extra: ExtraModel, embedding_model: str
) -> None:
    """It asks for vLLM's health check. Nothing needs this model any more."""
    stubs = [p for p in embedding_extra.server.processes() if is_stub(p, embedding_model)]
    kill_engine(stubs, GONE_SECONDS)
    client, repository = triton_grpc.for_model(embedding_model), embedding_extra.repository
    # vLLM may take the first one before it has noticed.
    for _ in range(3):
        error = client.generate(embedding(TEXT)).failed()
        if UNHEALTHY in error or NO_VERSIONS in error:
            break
    expect.matches("error", error, f"{UNHEALTHY}|{NO_VERSIONS}")
    gone = until(lambda: not repository.is_ready(embedding_model), UNLOAD_SECONDS)
    embedding_extra.unload()
    expect.happened("seconds until the model is not ready", gone, UNLOAD_SECONDS)
