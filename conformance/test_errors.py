"""ERR: what is wrong with a request is said, to that request only, and nothing else suffers."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    Generate,
    GenerateRequest,
    GrpcClient,
    HttpAnswer,
    HttpClient,
)
from pytest_vllm_triton.clients.http import http_body, to_generation
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.transcript import Transcript

from .alternate import MAX_MODEL_LEN
from .base_requests import PROMPT
from .error_words import CLIENTS_MISTAKE, TOO_LONG
from .experiments.deaths import EngineDeath
from .marks import UNARY_AND_STREAM
from .processes import serving_pids
from .record import Seen
from .strict_server import StrictServer
from .waits import ANSWER_SECONDS

GOOD = GenerateRequest(PROMPT, sampling={"temperature": 0}, exclude_input_in_output=True)
EMPTY_PROMPT_SECONDS = 5.0
# Of 4000 tokens, at 16 a step, on a slow CPU.
LONG_PROMPT_SECONDS = 60.0


def post(client: HttpClient, body: Any = None, content: bytes | None = None) -> HttpAnswer:
    return client.request("POST", client.path("generate"), json_body=body, content=content)


def expect_refused(answer: HttpAnswer, *parts: str) -> None:
    """A client's mistake: status 4xx and an error that contains all the parts."""
    expect.between("HTTP status", answer.status, 400, 499)
    for part in parts:
        expect.contains("error", answer.error, part)


def expect_refused_by_server(answer: HttpAnswer, part: str) -> None:
    """Refused before it reaches the backend; Triton 24.10 says 500 where newer servers say 400."""
    expect.between("HTTP status", answer.status, 400, 599)
    expect.contains("error", answer.error, part)


def as_a_word(name: str) -> str:
    """A regular expression for the name; "n" is in most sentences, as a letter."""
    return rf"(?<!\w){re.escape(name)}(?!\w)"


@pytest.mark.requirement("ERR-001")
def test_empty_object(triton_http: HttpClient) -> None:
    expect_refused(post(triton_http, {}), "expected number of inputs between 1 and", "text_input")


@pytest.mark.requirement("ERR-002")
def test_prompt_missing(generate: Generate) -> None:
    for request in (GenerateRequest(stream=False), GenerateRequest(stream=True)):
        error = generate(request).failed()
        expect.contains("error", error, "text_input")
        expect.clean_error(error)


@pytest.mark.requirement("ERR-003")
def test_wrong_json_types(triton_http: HttpClient) -> None:
    expect_refused_by_server(post(triton_http, {"text_input": 123}), "non-string as string")
    expect_refused_by_server(
        post(triton_http, {"text_input": PROMPT, "stream": "false"}),
        "attempt to access JSON non-boolean as boolean",
    )


@pytest.mark.requirement("ERR-004")
def test_two_prompts_do_not_fit(triton_http: HttpClient) -> None:
    expect_refused(
        post(triton_http, {"text_input": ["a", "b"]}),
        "The schema can not convert input 'text_input' to tensor with proper shape",
    )
    one = post(triton_http, {"text_input": ["a"]})
    expect.equal("HTTP status of a one-element array", one.status, 200)


@pytest.mark.requirement("ERR-005")
def test_duplicate_key(triton_http: HttpClient) -> None:
    content = b'{"text_input": "a", "text_input": "b"}'
    expect_refused(
        post(triton_http, content=content), "input 'text_input' already exists in request"
    )


@pytest.mark.requirement("ERR-006")
@pytest.mark.parametrize("content", [b'{"text_input": ', b"", b"nonsense"])
def test_malformed_body(triton_http: HttpClient, content: bytes) -> None:
    expect_refused_by_server(post(triton_http, content=content), "JSON")


@pytest.mark.requirement("ERR-007")
def test_bad_parameters_object(triton_http: HttpClient) -> None:
    expect_refused_by_server(
        post(triton_http, {"text_input": PROMPT, "parameters": 5}),
        "Expected JSON object for keyword: 'parameters'",
    )
    for value in ([".", "!"], {"a": 1}):
        expect_refused_by_server(
            post(triton_http, {"text_input": PROMPT, "parameters": {"stop": value}}),
            "parameter 'stop' has invalid type",
        )


@pytest.mark.requirement("ERR-008")
def test_unknown_model_version_and_method(triton_http: HttpClient) -> None:
    body = {"text_input": PROMPT}
    unknown = triton_http.request("POST", "/v2/models/x/generate", json_body=body)
    expect.equal("HTTP status of an unknown model", unknown.status, 404)
    expect.contains("error", unknown.error, "Request for unknown model: 'x' is not found")
    version = triton_http.request("POST", triton_http.path("generate", 9), json_body=body)
    expect.equal("HTTP status of an unknown version", version.status, 404)
    method = triton_http.get(triton_http.path("generate"))
    expect.equal("HTTP status of GET", method.status, 405)


@pytest.mark.requirement("ERR-009")
@pytest.mark.parametrize("name", ["foo", "größe"])
def test_unknown_sampling_parameter_is_named(generate: Generate, name: str) -> None:
    """Also as a number among the request's own parameters. Only a text there could be a forwarded
    header, which a backend may ignore."""
    given = ({name: 1}, {name: 0.5})
    for request in [
        *(GOOD.but(sampling=one) for one in given),
        *(GOOD.but(sampling=None, parameters=one) for one in given),
    ]:
        error = generate(request).failed()
        expect.contains("error", error, name)
        expect.clean_error(error)


@pytest.mark.requirement("ERR-010")
@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 1.1), ("n", 0), ("max_tokens", 0), ("top_k", -5)],
)
def test_out_of_range_value_is_explained(generate: Generate, name: str, value: float) -> None:
    given = {name: value}
    for request in (GOOD.but(sampling=given), GOOD.but(sampling=None, parameters=given)):
        error = generate(request).failed()
        expect.matches("error", error, as_a_word(name))
        expect.clean_error(error)


@pytest.mark.requirement("ERR-011")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "abc"),
        ("temperature", "warm"),
        ("n", [1]),
        ("max_tokens", 7.5),
        ("n", 1.5),
        ("max_tokens", ""),
    ],
)
def test_unconvertible_value_is_named(generate: Generate, name: str, value: Any) -> None:
    requests = [GOOD.but(sampling={name: value})]
    if not isinstance(value, list):
        requests.append(GOOD.but(sampling=None, parameters={name: value}))
    for request in requests:
        error = generate(request).failed()
        expect.matches("error", error, as_a_word(name))
        expect.clean_error(error)


@pytest.mark.requirement("ERR-011")
def test_number_for_a_text(generate: Generate) -> None:
    """A backend may convert it; if not, it says so."""
    answer = generate(GOOD.but(sampling={"stop": 5}))
    if answer.error is None:
        answer.ok()
    else:
        expect.contains("error", answer.error, "stop")
        expect.clean_error(answer.error)


@pytest.mark.requirement("ERR-012")
@pytest.mark.parametrize("text", ["{bad", "", '{"temperature": }'])
def test_sampling_parameters_must_be_json(generate: Generate, text: str) -> None:
    error = generate(GOOD.but(sampling=text)).failed()
    expect.matches("error", error, "(?i)sampling|json")
    expect.clean_error(error)


@pytest.mark.requirement("ERR-013")
@pytest.mark.parametrize(
    "text", ["[1]", "[]", '[["max_tokens", 1]]', "5", "null", '"a"', '""', "false"]
)
def test_sampling_parameters_must_be_an_object(generate: Generate, text: str) -> None:
    error = generate(GOOD.but(sampling=text)).failed()
    expect.matches("error", error, "(?i)sampling|json|object|dict")
    expect.clean_error(error)


@pytest.mark.requirement("ERR-014")
@pytest.mark.parametrize(
    "changes",
    [
        {"text_input": b"\xff\xfe\x80"},
        {"text_input": b"Say \xf0\x9f alpha"},
        {"sampling": b"\xff\xfe\x80"},
        {"sampling": b'{"stop": ["\xff"]}'},
    ],
    ids=["text_input", "half-a-character", "sampling_parameters", "in-json"],
)
def test_invalid_utf8(triton_grpc: GrpcClient, changes: dict[str, bytes]) -> None:
    error = triton_grpc.generate(GOOD.but(**changes)).failed()
    expect.clean_error(error)
    expect.equal("status of the next request", triton_grpc.generate(GOOD).ok().status, "OK")


@pytest.mark.requirement("ERR-015")
@UNARY_AND_STREAM
def test_too_long_prompt(triton_grpc: GrpcClient, alternate_model: str, stream: bool) -> None:
    """On one gRPC stream with good requests, which are answered as ever."""
    client = triton_grpc.for_model(alternate_model)
    expected = client.generate(GOOD).text
    with client.open() as opened:
        opened.send(GOOD.but(id="before"))
        opened.send(GenerateRequest(" venus" * (MAX_MODEL_LEN + 9), stream=stream, id="long"))
        opened.send(GOOD.but(id="after"))
        opened.half_close()
        responses = list(opened)
    errors = [r.error for r in responses if r.error is not None]
    expect.equal("number of errors", len(errors), 1)
    expect.matches("error", errors[0], rf"{TOO_LONG}|{MAX_MODEL_LEN}")
    texts = {r.id: r.text for r in responses if r.error is None}
    expect.equal("texts of the good requests", texts, {"before": expected, "after": expected})


@pytest.mark.requirement("ERR-024")
def test_more_tokens_than_the_context_has_room_for(
    triton_grpc: GrpcClient, alternate_model: str
) -> None:
    """Some versions of vLLM never end such an answer, which then keeps its place in the engine."""
    room = 40
    client = triton_grpc.for_model(alternate_model)
    request = GenerateRequest(
        " venus" * (MAX_MODEL_LEN - room),
        sampling={"temperature": 0, "ignore_eos": True, "min_tokens": 200, "max_tokens": 200},
        returns=("num_output_tokens",),
    )
    with client.open(deadline=LONG_PROMPT_SECONDS) as stream:
        stream.send(request)
        stream.half_close()
        responses = list(stream)
    expect.equal("number of responses", len(responses), 1)
    if responses[0].error is not None:
        expect.clean_error(responses[0].error)
    else:
        expect.between("output tokens", responses[0].value("num_output_tokens"), 1, room)
    expect.equal("error of the next request", client.generate(GOOD).error, None)


@pytest.mark.requirement("ERR-016")
def test_empty_prompt(generate: Generate) -> None:
    for _ in range(2):  # A host that stands still for seconds makes any one late.
        answer = generate(GOOD.but(text_input=""))
        if answer.seconds <= EMPTY_PROMPT_SECONDS:
            break
    expect.between("seconds", answer.seconds, 0, EMPTY_PROMPT_SECONDS)
    if answer.error is not None:
        expect.clean_error(answer.error)
    expect.equal("error of the next request", generate(GOOD).error, None)


@pytest.mark.requirement("ERR-017")
def test_bad_requests_leave_the_model_as_it_was(
    generate: Generate, triton_http: HttpClient, vllm_server: ServerHandle
) -> None:
    before = serving_pids(vllm_server, triton_http.model)
    expected = generate(GOOD).text
    bad = [
        GenerateRequest(stream=True),
        GOOD.but(sampling={"foo": 1}),
        GOOD.but(sampling={"temperature": -1}),
        GOOD.but(sampling={"max_tokens": "abc"}),
        GOOD.but(sampling="{bad"),
        GOOD.but(sampling="[1]"),
        GOOD.but(stream=True, exclude_input_in_output=False),
        GOOD.but(sampling={"structured_outputs": "{bad"}),
        GOOD.but(sampling={"structured_outputs": {"regex": "(("}}),
    ]
    for request in bad:
        generate(request).failed()
        ready = triton_http.get(triton_http.path("ready"))
        expect.equal("HTTP status of /ready", ready.status, 200)
        expect.equal("text of the next request", generate(GOOD).text, expected)
    after = {process.pid for process in vllm_server.processes()}
    expect.equal("stubs and engines that are gone", before - after, set())


@pytest.mark.requirement("ERR-018")
@UNARY_AND_STREAM
def test_an_error_is_one_final_response(
    triton_http: HttpClient, triton_grpc: GrpcClient, stream: bool
) -> None:
    bad = GOOD.but(sampling={"temperature": -1}, stream=stream, exclude_input_in_output=True)
    over_http = triton_http.generate(bad)
    expect.equal("number of HTTP responses", len(over_http.responses), 1)
    expect.equal("outputs beside the error", dict(over_http.responses[0].outputs), {})
    over_grpc = triton_grpc.generate(bad)
    expect.equal("number of gRPC responses", len(over_grpc.responses), 1)
    expect.equal("outputs beside the error", dict(over_grpc.responses[0].outputs), {})
    expect.equal("triton_final_response", over_grpc.responses[0].final, True)


@pytest.mark.requirement("ERR-019")
@pytest.mark.parametrize(
    "request_",
    [
        GOOD.but(sampling={"foo": 1}),
        GOOD.but(sampling={"temperature": -1}),
        GOOD.but(sampling="{bad"),
        GOOD.but(sampling={"max_tokens": "abc"}),
        GOOD.but(sampling={"logprobs": 10_000}),
        GOOD.but(stream=True, exclude_input_in_output=False),
        GenerateRequest(stream=False),
        GOOD.but(text_input=b"\xff"),
        GOOD.but(sampling="[1]"),
        GOOD.but(sampling={"structured_outputs": {"choice": ["a"], "regex": "a"}}),
        GOOD.but(sampling={"structured_outputs": "[" * 5000}),
        GOOD.but(sampling={"guided_decoding": "[" * 5000}),
        GOOD.but(sampling={"priority": 1 << 70}),
        GOOD.but(sampling=b"\xff"),
        # Longer than what gRPC takes of a status.
        GOOD.but(sampling={"max_tokens": "x" * 20_000}),
        GOOD.but(sampling={"字" * 20_000: 1}),
        GOOD.but(sampling=r'{"\uD800": 1}'),
    ],
    ids=[
        *("unknown", "range", "json", "type", "engine", "echo", "prompt"),
        *("utf-8", "list", "two-structures", "deep", "deep-old-name"),
        *("priority", "json-in-utf-8"),
        *("long-value", "long-name", "half-a-character"),
    ],
)
def test_client_mistakes_are_invalid_argument(
    triton_grpc: GrpcClient, request_: GenerateRequest
) -> None:
    """Over HTTP older servers answer 400 to every code, so the code is read from gRPC."""
    answer = triton_grpc.until_error(request_)
    expect.equal(f"gRPC status ({answer.error})", answer.status, "INVALID_ARGUMENT")


@pytest.mark.requirement("ERR-019")
@pytest.mark.parametrize(
    "request_",
    [
        GOOD.but(sampling={"lora_name": "x"}),
        GOOD.but(sampling={"lora_name": "x" * 20_000}),
        GenerateRequest(inputs={"embedding_request": '{"input": "a"}'}),
        GOOD.but(inputs={"image": ["no base64"]}),
    ],
    ids=["lora", "long-lora", "embedding", "image"],
)
def test_what_the_model_cannot_do_is_the_clients_mistake(
    triton_grpc: GrpcClient, request_: GenerateRequest
) -> None:
    answer = triton_grpc.until_error(request_)
    expect.one_of(f"gRPC status ({answer.error})", answer.status, CLIENTS_MISTAKE)


@pytest.mark.requirement("ERR-019")
def test_too_long_prompt_is_an_invalid_argument(
    triton_grpc: GrpcClient, alternate_model: str
) -> None:
    request = GenerateRequest(" venus" * (MAX_MODEL_LEN + 9))
    answer = triton_grpc.for_model(alternate_model).until_error(request)
    expect.equal(f"gRPC status ({answer.error})", answer.status, "INVALID_ARGUMENT")


#: What clients and proxies send; gRPC wants the names in lower case.
FORWARDED = {
    "x-request-id": "7f",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "authorization": "Bearer secret",
    "priority": "u=1, i",
}
FIVE_TOKENS = GenerateRequest(
    PROMPT,
    parameters={"max_tokens": 5, "temperature": 0.0, "ignore_eos": True},
    returns=("num_output_tokens",),
)


@pytest.mark.requirement("ERR-021")
@pytest.mark.parametrize("stream", [False, True])
def test_forwarded_metadata(
    strict_server: StrictServer, transcript: Transcript, stream: bool
) -> None:
    """This server forwards every header of a gRPC call as a request parameter."""
    metadata: list[tuple[str, str | bytes]] = [*FORWARDED.items(), ("x-trace-bin", b"\xff\xfe")]
    with strict_server.grpc(transcript) as client, client.open(metadata=metadata) as call:
        call.send(FIVE_TOKENS.but(stream=stream))
        call.half_close()
        responses = list(call)
    expect.equal("errors", [r.error for r in responses if r.error], [])
    counts = [r.values("num_output_tokens")[0] for r in responses if r.outputs]
    expect.equal("num_output_tokens", sum(counts), 5)


@pytest.mark.requirement("ERR-021")
@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_forwarded_headers(strict_server: StrictServer, transcript: Transcript, path: str) -> None:
    """Triton 24.10 forwards none with these two, whatever it is told; others may."""
    body = http_body(FIVE_TOKENS)
    with strict_server.http(transcript) as client:
        answer = client.request("POST", client.path(path), json_body=body, headers=FORWARDED)
    expect.equal(f"HTTP status ({answer.error})", answer.status, 200)
    counts = to_generation(FIVE_TOKENS, answer).all_values("num_output_tokens")
    expect.equal("num_output_tokens", counts, [5])


@pytest.mark.requirement("ERR-019")
def test_dead_engine_is_unavailable(deaths: Seen) -> None:
    """A request after the death, without the health check: clients try such a one again."""
    engine_death: EngineDeath = deaths["engine death"]
    later = engine_death.later
    expect.equal(f"gRPC status ({later.error})", later.status, "UNAVAILABLE")


@pytest.mark.requirement("ERR-020")
@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("a wrong type", r"inference input 'stream' data-type is"),
        (
            "a wrong shape",
            r"unexpected shape for input 'text_input'.*[Ee]xpected \[1\], got \[2\]",
        ),
        ("an unknown input", r"unexpected inference input 'x'"),
        ("an unknown output", r"unexpected inference output 'x'"),
    ],
)
def test_tensor_checks_of_the_server(bare_life: Seen, tensor: str, reason: str) -> None:
    expect.matches("error", bare_life[f"answer to {tensor}"].failed(), reason)


@pytest.mark.requirement("ERR-021")
def test_parameters_that_are_the_servers(generate: Generate) -> None:
    """Triton's own `timeout` is in microseconds, so this one is two minutes. The other reserved
    ones reach the backend over HTTP alone: over gRPC the server takes them out."""
    parameters = {
        "temperature": 0.0,
        "max_tokens": 200,
        "ignore_eos": True,
        "timeout": 120_000_000,
        "priority": 1,
        "sequence_id": 7,
        "sequence_start": True,
        "sequence_end": True,
        "triton_enable_empty_final_response": True,
        "binary_data_output": False,
    }
    request = GenerateRequest(PROMPT, parameters=parameters, returns=("num_output_tokens",))
    expect.equal("num_output_tokens", generate(request).last("num_output_tokens"), 200)


@pytest.mark.requirement("ERR-023")
def test_large_prompt_grows_shared_memory(generate: Generate) -> None:
    """2 MiB: twice the default region, and longer than any model takes, so refused by length."""
    error = generate(GOOD.but(text_input="a " * (1 << 20))).failed()
    expect.matches("error", error, TOO_LONG)
    expect.clean_error(error)
    expect.equal("error of the next request", generate(GOOD).error, None)


@pytest.mark.requirement("ERR-022")
def test_dead_engine_answers_with_errors(deaths: Seen) -> None:
    engine_death: EngineDeath = deaths["engine death"]
    for ending in engine_death.endings:
        expect.that("error of a request in flight", ending.error, bool, "an error")
    expect.between("seconds until it came", engine_death.seconds_to_error, 0, ANSWER_SECONDS)
    expect.that("error of a later request", engine_death.later.error, bool, "an error")
    expect.between("seconds until it came", engine_death.later.seconds, 0, ANSWER_SECONDS)


@pytest.mark.requirement("ERR-022")
def test_an_answer_without_an_error_is_complete(deaths: Seen) -> None:
    """Also one that ends when the engine is killed: what was cut short is no answer."""
    engine_death: EngineDeath = deaths["engine death"]
    for answer in engine_death.finished:
        counts = [response.values("num_output_tokens")[0] for response in answer.ok().data]
        asked_for = answer.request.sampling
        assert isinstance(asked_for, dict)
        expect.equal("num_output_tokens", sum(counts), asked_for["max_tokens"])


@pytest.mark.requirement("STR-012")
def test_tokens_come_before_the_error(deaths: Seen, vllm_model: ModelUnderTest) -> None:
    engine_death: EngineDeath = deaths["engine death"]
    responses = engine_death.in_flight.responses
    expect.between("number of responses", len(responses), 2, math.inf)
    data, last = responses[:-1], responses[-1]
    expect.equal("errors before the last response", [r.error for r in data if r.error], [])
    expect.that("last response", last.error, bool, "an error")
    text = "".join(response.text for response in data)
    stable = vllm_model.stable_part
    expected = engine_death.full_text[: len(text)]
    expect.equal("text before the error", stable(text), stable(expected))
