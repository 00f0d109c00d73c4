"""GEN: unary generation, and what its requests and answers look like."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, Generation, GrpcClient, HttpClient
from pytest_vllm_triton.clients.grpc import infer_request
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .alternate import ONLY_VERSION, Alternate
from .base_requests import HOT, ONE, PROMPT
from .engine_limits import needs_context
from .logs import log_of
from .marks import UNARY_AND_STREAM
from .traffic import first_of


@pytest.mark.requirement("GEN-001")
def test_first_inference_of_the_readme(triton_http: HttpClient) -> None:
    body = {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0}}
    answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("Content-Type", answer.headers.get("content-type"), "application/json")
    value = answer.json_object()
    expect.equal("keys", sorted(value), ["model_name", "model_version", "text_output"])
    expect.equal("model_name", value["model_name"], triton_http.model)
    expect.matches("model_version", value["model_version"], r"^\d+$")
    expect.equal("type of text_output", type(value["text_output"]), str)


def expect_elements(client: GrpcClient, n: int, *, stream: bool) -> None:
    """Over HTTP the shape does not show: generate writes an array of one element as a scalar."""
    sampling = {**HOT, "n": n, "max_tokens": 4}
    for response in client.generate(ONE.but(stream=stream, sampling=sampling)).ok().data:
        tensor = response.tensor("text_output")
        expect.equal("datatype and shape", (tensor.datatype, tensor.shape), ("BYTES", (n,)))


@pytest.mark.requirement("GEN-001")
@UNARY_AND_STREAM
def test_text_output_has_one_element(triton_grpc: GrpcClient, stream: bool) -> None:
    expect_elements(triton_grpc, 1, stream=stream)


@pytest.mark.requirement("GEN-019")
def test_text_output_has_an_element_per_sequence(triton_grpc: GrpcClient) -> None:
    expect_elements(triton_grpc, 2, stream=False)


@pytest.mark.requirement("STR-013")
def test_each_delta_has_an_element_per_sequence(triton_grpc: GrpcClient) -> None:
    expect_elements(triton_grpc, 2, stream=True)


@pytest.mark.requirement("GEN-002")
def test_unary_answer_starts_with_the_prompt(generate: Generate) -> None:
    text = generate(ONE.but(exclude_input_in_output=None)).text
    expect.starts_with("text_output", text, PROMPT)
    expect.that("text after the prompt", text[len(PROMPT) :], bool, "at least one character")


@pytest.mark.requirement("GEN-003")
def test_exclude_false_is_the_default(generate: Generate) -> None:
    default = generate(ONE.but(exclude_input_in_output=None)).text
    explicit = generate(ONE.but(exclude_input_in_output=False)).text
    expect.equal("text with exclude_input_in_output=false", explicit, default)


@pytest.mark.requirement("GEN-004")
def test_exclude_true_removes_exactly_the_prompt(generate: Generate) -> None:
    with_prompt = generate(ONE.but(exclude_input_in_output=None)).text
    without = generate(ONE).text
    expect.equal("prompt + text without the prompt", PROMPT + without, with_prompt)


@pytest.mark.requirement("GEN-005")
@pytest.mark.parametrize(
    "prompt", [PROMPT, "Say alpha", "Say mike", "Ünï ¢ödé 你好", "a\nb\tc tango"]
)
def test_greedy_text_is_the_known_answer(
    generate: Generate, story: KnownAnswer, prompt: str
) -> None:
    sampling = {"temperature": 0, "max_tokens": 64}
    answer = generate(ONE.but(text_input=prompt, sampling=sampling))
    expect.equal("text_output", answer.text, story.answer(prompt, max_tokens=64).text)


@pytest.mark.requirement("GEN-006")
def test_greedy_repeats_are_identical(generate: Generate) -> None:
    texts = {generate(ONE).text for _ in range(5)}
    expect.equal("number of different texts in 5 repeats", len(texts), 1)


@pytest.mark.requirement("GEN-007")
@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 100, "ignore_eos": True}, 100),
        ({"max_tokens": 20, "min_tokens": 20}, 20),
    ],
    ids=["max_tokens=1", "max_tokens=100", "min_tokens=max_tokens=20"],
)
def test_token_limits_are_exact(
    generate: Generate, sampling: Mapping[str, Any], count: int
) -> None:
    """Near the story's end, where its EOS comes before the 20th token."""
    request = ONE.but(
        text_input="Say xray",
        sampling={"temperature": 0, **sampling},
        returns=("num_output_tokens",),
    )
    expect.equal("num_output_tokens", generate(request).last("num_output_tokens"), count)


# More than 1024 tokens and 4096 characters, limits that servers like to have.
LONG = ONE.but(
    sampling={"temperature": 0, "max_tokens": 1100, "ignore_eos": True},
    returns=("num_output_tokens",),
)

LONG_CONTEXT = 1200


@pytest.mark.requirement("GEN-007")
def test_long_answers_are_not_cut(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    needs_context(vllm_harness, LONG_CONTEXT)
    expect_whole(triton_grpc.generate(LONG), vllm_model)


@pytest.mark.requirement("STR-002")
def test_long_streams_are_not_cut(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    needs_context(vllm_harness, LONG_CONTEXT)
    expect_whole(triton_grpc.generate(LONG.but(stream=True)), vllm_model)


def expect_whole(answer: Generation, model: ModelUnderTest) -> None:
    """It is all that the long request asked for."""
    tokens = sum(response.value("num_output_tokens") for response in answer.ok().data)
    expect.equal("num_output_tokens", tokens, 1100)
    if model.known_answer is not None:
        expected = model.known_answer.answer(PROMPT, max_tokens=1100, ignore_eos=True).text
        expect.equal("text_output", answer.text, expected)


@pytest.mark.requirement("GEN-007")
def test_generation_ends_at_the_end_of_the_story(
    generate: Generate, known_answer: KnownAnswer
) -> None:
    request = ONE.but(
        text_input="Say alpha",
        sampling={"temperature": 0, "max_tokens": 200},
        returns=("num_output_tokens",),
    )
    expected = known_answer.answer("Say alpha", max_tokens=200)
    answer = generate(request)
    expect.equal("text_output", answer.text, expected.text)
    expect.equal("num_output_tokens", answer.last("num_output_tokens"), expected.num_output_tokens)


@pytest.mark.requirement("GEN-008")
@pytest.mark.parametrize("given", ["sampling", "parameters"])
@UNARY_AND_STREAM
def test_default_is_sixteen_tokens(generate: Generate, given: str, stream: bool) -> None:
    """Whether the request says anything of its sampling in the tensor or in its own parameters."""
    request = GenerateRequest(
        "Hello", stream=stream, returns=("num_output_tokens", "finish_reason")
    ).but(**{given: {"ignore_eos": True}})
    answer = generate(request)
    expect.equal("num_output_tokens", sum(answer.all_values("num_output_tokens")), 16)
    expect.equal("finish_reason", answer.last("finish_reason"), "length")


@pytest.mark.requirement("GEN-008")
def test_prompt_alone_is_enough(generate: Generate) -> None:
    answer = generate(GenerateRequest("Hello", returns=("num_output_tokens",)))
    expect.starts_with("text_output", answer.text, "Hello")
    expect.between("num_output_tokens", answer.last("num_output_tokens"), 1, 16)


@pytest.mark.requirement("GEN-021")
@pytest.mark.parametrize("request_id", ["42", "größe-名-😀"], ids=["number", "beyond ASCII"])
def test_request_id_is_echoed(generate: Generate, request_id: str) -> None:
    answer = generate(ONE.but(id=request_id))
    expect.equal("ids of the responses", {r.id for r in answer.ok().data}, {request_id})


@pytest.mark.requirement("GEN-021")
def test_equal_ids_at_the_same_time(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    """Ids are the clients' own affair: two requests of one id, as different as can be."""
    needs_context(vllm_harness, 450)
    sampling = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}
    unary = GenerateRequest("Say alpha", sampling=sampling, id="42")
    stream = GenerateRequest(
        "Say tango", sampling=sampling, id="42", stream=True, returns=("num_output_tokens",)
    )
    expected = [triton_grpc.generate(request).ok().text for request in (unary, stream)]
    with triton_grpc.open() as one, triton_grpc.open() as other:
        one.send(unary)
        one.half_close()
        other.send(stream)
        other.half_close()
        answers = [[*responses] for responses in (other, one)][::-1]
    errors = [response.error for response in itertools.chain(*answers) if response.error]
    expect.equal("errors", errors, [])
    texts = ["".join(response.text for response in responses) for responses in answers]
    stable = vllm_model.stable_part
    expect.equal("texts, by request", [*map(stable, texts)], [*map(stable, expected)])
    counts = [response.value("num_output_tokens") for response in answers[1] if response.outputs]
    expect.equal("num_output_tokens of the stream", sum(counts), 400)
    names = {name for response in answers[0] for name in response.outputs}
    expect.equal("outputs of the unary request", names, {"text_output"})


@pytest.mark.requirement("GEN-022")
def test_no_id_is_echoed_without_one(triton_http: HttpClient) -> None:
    for extra in ({}, {"id": ""}):
        body = {"text_input": PROMPT, **extra}
        answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
        expect.equal("HTTP status", answer.status, 200)
        expect.that("keys", sorted(answer.json_object()), lambda keys: "id" not in keys, "no id")


@pytest.mark.requirement("GEN-023")
def test_versioned_address(triton_http: HttpClient, owned_server: ServerHandle) -> None:
    answer = triton_http.generate(ONE, version=1)
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("model_version", answer.ok().data[0].model_version, "1")


@pytest.mark.requirement("GEN-023")
def test_only_version_three(triton_http: HttpClient, alternate: Alternate) -> None:
    expect.equal("version of the alternate model that loads", alternate.version, ONLY_VERSION)
    client = triton_http.for_model(alternate.name)
    for version in (None, 3):
        answer = client.generate(ONE, version=version)
        expect.equal("HTTP status", answer.status, 200)
        expect.equal("model_version", answer.ok().data[0].model_version, "3")
    expect.equal("HTTP status of version 1", client.generate(ONE, version=1).status, 404)


@pytest.mark.requirement("GEN-024")
def test_unicode_and_escapes_round_trip(generate: Generate) -> None:
    prompt = '中文 😀 "quoted" back\\slash\nnew line\ttab {"json": [1]} é \u0001 end'
    text = generate(ONE.but(text_input=prompt, exclude_input_in_output=None)).text
    expect.starts_with("text_output", text, prompt)


@pytest.mark.requirement("GEN-025")
def test_inputs_inside_parameters(triton_http: HttpClient) -> None:
    """Everything but the prompt nested in ``parameters`` means the same as at the top level."""
    inputs = {
        "stream": False,
        "exclude_input_in_output": True,
        "return_num_output_tokens": True,
        "return_finish_reason": True,
        "sampling_parameters": '{"temperature": 0, "max_tokens": 7, "ignore_eos": true}',
    }
    path = triton_http.path("generate")
    flat = triton_http.request("POST", path, json_body={"text_input": PROMPT, **inputs})
    nested = triton_http.request(
        "POST", path, json_body={"text_input": PROMPT, "parameters": inputs}
    )
    expect.equal("HTTP status", (flat.status, nested.status), (200, 200))
    expect.equal("body with nested inputs", nested.json(), flat.json())
    expect.equal("num_output_tokens", flat.json_object().get("num_output_tokens"), 7)


@pytest.mark.requirement("GEN-026")
def test_several_responses_do_not_fit_generate(triton_http: HttpClient) -> None:
    # Of few tokens a backend that stood still may make one response.
    for tokens in (200, 800, 1600):
        parameters = {"max_tokens": tokens, "ignore_eos": True}
        body = {"text_input": PROMPT, "stream": True, "parameters": parameters}
        answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
        if answer.error is not None:
            break
    expect.contains("error", answer.error, "expects model to produce exactly 1 response")


@pytest.mark.requirement("GEN-027")
def test_infer_is_refused_not_hung(triton_http: HttpClient) -> None:
    body = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}]}
    answer = triton_http.request("POST", triton_http.path("infer"), json_body=body, deadline=10.0)
    expect.between("HTTP status", answer.status, 400, 599)
    expect.contains("error", answer.error, "decoupled")


@pytest.mark.requirement("GEN-027")
def test_unary_grpc_is_refused_not_hung(triton_grpc: GrpcClient) -> None:
    import grpc

    message = infer_request(triton_grpc.model, GenerateRequest(PROMPT))
    with expect.raises("unary ModelInfer", grpc.RpcError) as raised:
        triton_grpc.stub.ModelInfer(message, timeout=10.0)
    expect.equal("gRPC status", raised.error.code().name, "UNIMPLEMENTED")
    expect.contains("error", raised.error.details(), "ModelInfer RPC doesn't support")


@pytest.mark.requirement("GEN-030")
def test_what_users_say_is_not_in_the_log(
    generate: Generate, triton_grpc: GrpcClient, vllm_server: ServerHandle
) -> None:
    """Prompts of requests that are answered, of one that is cancelled, and of some that are
    refused, by the backend and by the engine; and parameters, of which one is the answer."""
    log = log_of(vllm_server)
    since = log.position()
    secret = f"secret{random.getrandbits(64)}"
    prompt = f"The word is {secret}"
    request = ONE.but(text_input=prompt)
    stream = request.but(stream=True, exclude_input_in_output=None)
    with triton_grpc.open() as call:
        call.send(stream.but(sampling={"max_tokens": 1500, "ignore_eos": True}))
        first_of(call)
    # No token's; longer than what a time in the log may hold.
    number = random.randint(2_000_000_000, 2**31 - 1)
    structure = json.dumps({"choice": [secret]})
    choice = {"structured_outputs": structure, "temperature": 0, "max_tokens": 64}
    # What becomes of each of them is the affair of other requirements.
    answered = [generate(request), generate(stream)]
    for asked in (request, stream):
        generate(asked.but(text_input=PROMPT, sampling=choice))
    generate(request.but(sampling={"temperature": -1, "stop": [secret]}))
    generate(request.but(sampling=f'{{"stop": ["{secret}'))
    generate(request.but(sampling={"structured_outputs": {"regex": "(("}}))
    generate(request.but(sampling={"max_tokens": secret}))
    generate(request.but(sampling={secret: 1}))
    for refused in ({"logprobs": number}, {"logit_bias": {str(number): 1}}):
        generate(request.but(sampling=refused))
    for more in ({}, {"pooling_params": 5}):
        embedding = json.dumps({"input": prompt, **more})
        generate(GenerateRequest(inputs={"embedding_request": embedding}))
    generate(request.but(text_input=f"{prompt} alpha" * 20_000))
    generate(stream.but(sampling={"max_tokens": 500}, parameters={"timeout": 1000}))
    if any(answer.error is not None for answer in answered):
        untested(f"a good request is not answered: {[answer.error for answer in answered]}")
    for said in (secret, str(number)):
        expect.lacks("log since the first request", log.read(since), said)
