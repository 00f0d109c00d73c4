"""OUT: the additional outputs that a request can ask for."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    Generate,
    GenerateRequest,
    Generation,
    GrpcClient,
    HttpClient,
    Response,
    Tensor,
)
from pytest_vllm_triton.clients.http import to_generation
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .base_requests import nonempty_text
from .engine_limits import needs_context
from .marks import UNARY_AND_STREAM
from .traffic import on_one_stream

PROMPT = "The capital of France is"
ADDITIONAL = (
    "finish_reason",
    "cumulative_logprob",
    "logprobs",
    "num_input_tokens",
    "num_output_tokens",
)
EMPTY_ANSWER_SECONDS = 20.0
UNARY = GenerateRequest(
    PROMPT,
    sampling={"temperature": 0, "max_tokens": 10, "ignore_eos": True},
    exclude_input_in_output=True,
)


def asking(stream: bool, *returns: str, **sampling: Any) -> GenerateRequest:
    """A greedy request of 10 tokens for some additional outputs."""
    base: dict[str, Any] = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
    return UNARY.but(
        stream=stream,
        exclude_input_in_output=None if stream else True,
        returns=returns,
        sampling={**base, **sampling},
    )


def expect_type(answer: Generation, name: str, datatype: str) -> None:
    """Over HTTP neither shows: generate writes an array of one element as a scalar."""
    tensors = [response.outputs.get(name, Tensor([])) for response in answer.ok().data]
    shown = {(tensor.datatype, tensor.shape) for tensor in tensors}
    expect.equal(f"datatype and shape of {name}", shown, {(datatype, (1,))})


def crowd(client: GrpcClient) -> dict[str, tuple[GenerateRequest, list[Response]]]:
    """24 requests of unequal length at once, every second one for all additional outputs; by id.

    So many that an engine's steps, or a backend's responses, may hold several tokens each.
    """
    requests = {}
    for index in range(24):
        request = asking(
            True, *(ADDITIONAL if index % 2 else ()), logprobs=0, max_tokens=8 + index % 5
        )
        requests[str(index)] = request.but(text_input=PROMPT + " alpha" * (index % 7))
    answers = on_one_stream(client, requests)
    return {name: (requests[name], answers[name]) for name in requests}


def asking_for_all(client: GrpcClient) -> dict[str, tuple[GenerateRequest, list[Response]]]:
    """Those of such a crowd that ask for all additional outputs."""
    return {name: asked for name, asked in crowd(client).items() if asked[0].returns}


@pytest.mark.requirement("OUT-001")
@UNARY_AND_STREAM
def test_nothing_additional_unless_asked(generate: Generate, stream: bool) -> None:
    off = dict.fromkeys((f"return_{name}" for name in ADDITIONAL), False)
    for inputs in ({}, off):
        answer = generate(asking(stream).but(inputs=inputs))
        names = {name for response in answer.ok().data for name in response.outputs}
        expect.equal("outputs", names, {"text_output"})


@pytest.mark.requirement("OUT-001")
def test_flags_are_those_of_the_request(triton_grpc: GrpcClient) -> None:
    """Also while others run that ask for something else."""
    for name, (request, responses) in crowd(triton_grpc).items():
        outputs = {output for response in responses for output in response.outputs}
        expect.equal(f"outputs of request {name}", outputs, {"text_output", *request.returns})


@pytest.mark.requirement("OUT-002")
def test_finish_reason_length(triton_grpc: GrpcClient) -> None:
    answer = triton_grpc.generate(asking(False, "finish_reason"))
    tensor = answer.ok().data[0].tensor("finish_reason")
    expect.equal("datatype and shape", (tensor.datatype, tensor.shape), ("BYTES", (1,)))
    expect.equal("finish_reason", tensor.values, ["length"])


@pytest.mark.requirement("OUT-003")
@UNARY_AND_STREAM
def test_finish_reason_stop_at_eos(
    generate: Generate, known_answer: KnownAnswer, stream: bool
) -> None:
    request = asking(stream, "finish_reason", max_tokens=64, ignore_eos=False)
    answer = generate(request.but(text_input="Say alpha"))
    expect.equal("finish_reason", answer.last("finish_reason"), "stop")
    expect.equal("text", answer.text, known_answer.answer("Say alpha", max_tokens=64).text)


@pytest.mark.requirement("OUT-003")
@UNARY_AND_STREAM
def test_finish_reason_stop_at_stop_string(generate: Generate, stream: bool) -> None:
    text = nonempty_text(generate, UNARY)
    stop = text[len(text) // 2 :][:2]
    answer = generate(asking(stream, "finish_reason", stop=[stop]))
    expect.equal("finish_reason", answer.last("finish_reason"), "stop")


@pytest.mark.requirement("OUT-004")
def test_finish_reason_in_a_stream(generate: Generate) -> None:
    """Of many tokens, as a few may come in one response."""
    request = asking(True, "finish_reason", max_tokens=200)
    reasons = generate(request).all_values("finish_reason")
    expect.equal("last finish_reason", reasons[-1], "length")
    expect.equal("earlier ones that are not empty", set(reasons[:-1]) - {""}, set())


@pytest.mark.requirement("OUT-004")
def test_finish_reasons_in_a_crowd(triton_grpc: GrpcClient) -> None:
    """Others end while a request goes on."""
    for name, (_, responses) in asking_for_all(triton_grpc).items():
        reasons = [response.value("finish_reason") for response in responses]
        expected = [""] * (len(reasons) - 1) + ["length"]
        expect.equal(f"finish_reason by response of request {name}", reasons, expected)


@pytest.mark.requirement("OUT-005")
@UNARY_AND_STREAM
def test_cumulative_logprob_is_the_sum(generate: Generate, stream: bool) -> None:
    answer = generate(asking(stream, "cumulative_logprob", "logprobs", logprobs=0))
    cumulative = answer.all_values("cumulative_logprob")
    total = sum(next(iter(entry.values()))["logprob"] for entry in answer.logprobs())
    expect.between("cumulative_logprob", cumulative[-1], total - 1e-3, min(0.0, total + 1e-3))
    expect.equal("values over the stream", cumulative, sorted(cumulative, reverse=True))


@pytest.mark.requirement("OUT-005")
def test_cumulative_logprob_grows_with_the_tokens(generate: Generate) -> None:
    """In each response of a stream it is the sum up to there."""
    request = asking(True, "cumulative_logprob", "logprobs", logprobs=0, max_tokens=40)
    total = 0.0
    for response in generate(request).ok().data:
        entries = response.logprobs()
        total += sum(next(iter(entry.values()))["logprob"] for entry in entries)
        value = response.value("cumulative_logprob")
        expect.between("cumulative_logprob of a response", value, total - 1e-3, total + 1e-3)


@pytest.mark.requirement("OUT-005")
def test_cumulative_logprob_is_the_requests_own(triton_grpc: GrpcClient) -> None:
    """The same for each sequence of several streams at once."""
    expect_sums_of_logprobs(triton_grpc, ignore_eos=True)


@pytest.mark.requirement("OUT-016")
def test_cumulative_logprob_of_a_sequence_that_has_ended(triton_grpc: GrpcClient) -> None:
    """While others of its request go on it is what it was."""
    expect_sums_of_logprobs(triton_grpc, ignore_eos=False, stop=["e", "o"])


def expect_sums_of_logprobs(client: GrpcClient, **sampling: Any) -> None:
    """In each response, for each sequence of each of these streams."""
    requests = {
        str(number): asking(
            True,
            *("cumulative_logprob", "logprobs"),
            logprobs=0,
            temperature=2.0,
            seed=number,
            n=1 + number % 3,
            max_tokens=16,
            **sampling,
        )
        for number in range(8)
    }
    for name, responses in on_one_stream(client, requests).items():
        expect.equal(f"errors of {name}", [r.error for r in responses if r.error], [])
        totals: dict[int, float] = defaultdict(float)
        for response in responses:
            for index in range(len(response.values("cumulative_logprob"))):
                has_none = response.value("logprobs", index) in ("", "null", "[]")
                entries = [] if has_none else response.logprobs(index)
                totals[index] += sum(next(iter(entry.values()))["logprob"] for entry in entries)
                value, total = response.value("cumulative_logprob", index), totals[index]
                what = f"cumulative_logprob of sequence {index} of {name}"
                expect.between(what, value, total - 1e-2, total + 1e-2)


@pytest.mark.requirement("OUT-005")
@UNARY_AND_STREAM
def test_cumulative_logprob_is_the_known_one(
    generate: Generate, known_answer: KnownAnswer, stream: bool
) -> None:
    expected = known_answer.answer("Say alpha", max_tokens=10).cumulative_logprob
    request = asking(stream, "cumulative_logprob", logprobs=0).but(text_input="Say alpha")
    actual = generate(request).last("cumulative_logprob")
    expect.between("cumulative_logprob", actual, expected - 0.01, expected + 0.01)


@pytest.mark.requirement("OUT-005")
@UNARY_AND_STREAM
def test_cumulative_logprob_is_one_float(triton_grpc: GrpcClient, stream: bool) -> None:
    answer = triton_grpc.generate(asking(stream, "cumulative_logprob", logprobs=0))
    expect_type(answer, "cumulative_logprob", "FP32")


@pytest.mark.requirement("OUT-006")
@UNARY_AND_STREAM
def test_cumulative_logprob_without_logprobs(
    triton_http: HttpClient, triton_grpc: GrpcClient, stream: bool
) -> None:
    """Omitted, refused, or right: NaN is no answer and no valid JSON, and 0 would be certainty."""
    request = asking(stream, "cumulative_logprob")
    sampled = asking(False, "cumulative_logprob", logprobs=0)
    right = triton_grpc.generate(sampled).last("cumulative_logprob")
    for client in (triton_http, triton_grpc):
        answer = client.generate(request)
        if answer.error is not None:
            expect.contains("error", answer.error, "logprob")
            continue
        last = answer.ok().data[-1]
        if "cumulative_logprob" in last.outputs:
            value = last.value("cumulative_logprob")
            expect.between("cumulative_logprob", value, right - 0.01, right + 0.01)


@pytest.mark.requirement("OUT-007")
@UNARY_AND_STREAM
@pytest.mark.parametrize("count", [1, 3, 20])
def test_logprobs_entries(generate: Generate, stream: bool, count: int) -> None:
    entries = generate(asking(stream, "logprobs", logprobs=count)).logprobs()
    expect.equal("number of entries", len(entries), 10)
    for entry in entries:
        expect.between("alternatives of a token", len(entry), count, count + 1)
        ranks = [value["rank"] for value in entry.values()]
        expect.equal("entries of rank 1", ranks.count(1), 1)
        for token_id, value in entry.items():
            expect.matches("token id", token_id, r"^\d+$")
            expect.equal("keys", set(value), {"logprob", "rank", "decoded_token"})
            types = (type(value["logprob"]), type(value["rank"]), type(value["decoded_token"]))
            expect.equal("types", types, (float, int, str))
            expect.that("logprob", value["logprob"], lambda x: x <= 0, "at most 0")


@pytest.mark.requirement("OUT-007")
@UNARY_AND_STREAM
def test_logprobs_are_the_known_ones(
    generate: Generate, known_answer: KnownAnswer, stream: bool
) -> None:
    """Through the emoji, whose first tokens have no text of their own."""
    prompt, count = "Say lima", 20
    answer = known_answer.answer(prompt, max_tokens=count, ignore_eos=True)
    request = asking(stream, "logprobs", logprobs=2, max_tokens=count).but(text_input=prompt)
    entries = generate(request).logprobs()
    expect.equal("number of entries", len(entries), count)
    previous = known_answer.tokenize(prompt)[-1]
    for entry, token, text in zip(entries, answer.token_ids, answer.decoded_tokens, strict=True):
        best = known_answer.top_logprobs(previous, 2)
        expect.equal("token ids", set(entry), {str(candidate) for candidate, _ in best})
        for candidate, logprob in best:
            actual = entry[str(candidate)]["logprob"]
            expect.between("logprob", actual, logprob - 0.01, logprob + 0.01)
        expect.equal("decoded_token", entry[str(token)]["decoded_token"], text)
        previous = token


@pytest.mark.requirement("CFG-009")
@UNARY_AND_STREAM
def test_logprobs_of_sampled_tokens_are_the_models(
    generate: Generate, known_answer: KnownAnswer, stream: bool
) -> None:
    """Those of what was sampled from are another vLLM setting, `logprobs_mode`."""
    request = asking(stream, "logprobs", logprobs=0, temperature=2.0, seed=5, max_tokens=24)
    previous = known_answer.tokenize(PROMPT)[-1]
    entries = generate(request).logprobs()
    expect.equal("tokens with logprobs", len(entries), 24)
    for entry in entries:
        expect.equal("alternatives of a token", len(entry), 1)
        ((token, value),) = entry.items()
        expected = known_answer.expected_logprob(previous, int(token))
        expect.between("logprob", value["logprob"], expected - 0.02, expected + 0.02)
        previous = int(token)


@pytest.mark.requirement("OUT-007")
@UNARY_AND_STREAM
def test_ranks_are_by_logprob(generate: Generate, stream: bool) -> None:
    """Of sampled tokens, which are seldom the most probable ones."""
    request = asking(stream, "logprobs", logprobs=2, temperature=2.0, seed=5, max_tokens=24)
    entries = generate(request).logprobs()
    expect.equal("tokens with logprobs", len(entries), 24)
    for entry in entries:
        by_rank = sorted(entry.values(), key=lambda value: int(value["rank"]))
        logprobs = [value["logprob"] for value in by_rank]
        expect.equal("logprobs by rank", logprobs, sorted(logprobs, reverse=True))
        expect.equal("entries of rank 1", [value["rank"] for value in by_rank].count(1), 1)


@pytest.mark.requirement("OUT-007")
@UNARY_AND_STREAM
def test_logprobs_are_one_text(triton_grpc: GrpcClient, stream: bool) -> None:
    expect_type(triton_grpc.generate(asking(stream, "logprobs", logprobs=0)), "logprobs", "BYTES")


@pytest.mark.requirement("OUT-007")
def test_logprobs_of_a_long_answer(triton_grpc: GrpcClient, vllm_harness: Harness) -> None:
    """More than a megabyte of them."""
    needs_context(vllm_harness, 1200)
    answer = triton_grpc.generate(asking(False, "logprobs", max_tokens=1100, logprobs=20))
    alternatives = [len(entry) for entry in answer.ok().logprobs()]
    expect.equal("tokens with logprobs", len(alternatives), 1100)
    expect.between("fewest alternatives of a token", min(alternatives), 20, 21)


@pytest.mark.requirement("OUT-008")
@UNARY_AND_STREAM
def test_logprobs_not_asked_of_the_sampler(generate: Generate, stream: bool) -> None:
    texts = generate(asking(stream, "logprobs")).all_values("logprobs")
    expect.equal("logprobs", set(texts), {"null"})


@pytest.mark.requirement("OUT-008")
@UNARY_AND_STREAM
def test_logprobs_of_n_sequences_not_asked_of_the_sampler(
    triton_grpc: GrpcClient, stream: bool
) -> None:
    answer = triton_grpc.generate(asking(stream, "logprobs", temperature=2.0, n=2))
    texts = {tuple(response.values("logprobs")) for response in answer.ok().data}
    expect.equal("logprobs", texts, {("null", "null")})


@pytest.mark.requirement("OUT-008")
@UNARY_AND_STREAM
def test_logprobs_zero_is_the_sampled_token_only(generate: Generate, stream: bool) -> None:
    entries = generate(asking(stream, "logprobs", logprobs=0)).logprobs()
    expect.equal("alternatives per token", [len(entry) for entry in entries], [1] * 10)


@pytest.mark.requirement("OUT-009")
@UNARY_AND_STREAM
def test_logprobs_spell_the_text(
    generate: Generate, vllm_model: ModelUnderTest, stream: bool
) -> None:
    """Other models' tokens may not, one by one: some leave out spaces, or are not shown. Theirs are
    compared with those that were sampled: of two equally probable ones it may be the second."""
    answer = generate(asking(stream, "logprobs", "num_output_tokens", logprobs=1))
    entries, best, spelt = answer.logprobs(), [], ""
    for entry in entries:
        first = [value for value in entry.values() if value["rank"] == 1]
        expect.equal("number of tokens of rank 1", len(first), 1)
        best.append(first[0]["logprob"])
        spelt += first[0]["decoded_token"]
    if vllm_model.known_answer is not None:
        expect.equal("joined rank-1 tokens", spelt, answer.text)
    else:
        alone = generate(asking(stream, "logprobs", logprobs=0)).logprobs()
        sampled = [token for entry in alone for token in entry]
        expect.equal("number of sampled tokens", len(sampled), len(entries))
        for entry, token, logprob in zip(entries, sampled, best, strict=True):
            expect.contains("token ids of an entry", [*entry], token)
            expect.equal("logprob of the sampled token", entry[token]["logprob"], logprob)
    for response in answer.data:
        tokens = len(response.logprobs())
        expect.equal("entries of a response", tokens, response.value("num_output_tokens"))


@pytest.mark.requirement("OUT-009")
@UNARY_AND_STREAM
@pytest.mark.parametrize("ends", [{"ignore_eos": False}, {"stop": ["mike"]}], ids=["eos", "stop"])
def test_last_token_has_logprobs(
    generate: Generate, known_answer: KnownAnswer, stream: bool, ends: dict[str, Any]
) -> None:
    """The one that ends the text, though none of it may be in the text."""
    expected = known_answer.answer(PROMPT, **{"max_tokens": 64, "ignore_eos": True, **ends})
    request = asking(stream, "logprobs", "num_output_tokens", max_tokens=64, logprobs=0, **ends)
    answer = generate(request)
    expect.equal("text_output", answer.text, expected.text)
    tokens = [int(token) for entry in answer.logprobs() for token in entry]
    expect.equal("token ids of logprobs", tokens, [*expected.token_ids])
    counts = answer.all_values("num_output_tokens")
    expect.equal("sum of num_output_tokens", sum(counts), expected.num_output_tokens)


@pytest.mark.requirement("OUT-009")
def test_tokens_without_text_have_logprobs(generate: Generate) -> None:
    """A stop string holds the text back until the end, and no count is asked for that would be lost
    without the tokens before."""
    answer = generate(asking(True, "logprobs", logprobs=0, stop=["~" * 1000]))
    expect.equal("entries of logprobs", len(answer.logprobs()), 10)


@pytest.mark.requirement("OUT-009")
def test_logprobs_add_up_in_a_crowd(triton_grpc: GrpcClient) -> None:
    for name, (_, responses) in asking_for_all(triton_grpc).items():
        entries = [len(response.logprobs()) for response in responses]
        counts = [response.value("num_output_tokens") for response in responses]
        expect.equal(f"entries by response of request {name}", entries, counts)


@pytest.mark.requirement("OUT-010")
@UNARY_AND_STREAM
def test_num_input_tokens(generate: Generate, vllm_model: ModelUnderTest, stream: bool) -> None:
    tokenizer = vllm_model.tokenizer
    if tokenizer is None:
        untested("needs the tokenizer of the served model: give --vllm-model")
    for prompt in (PROMPT, "a", "Ünï ¢ödé 你好 " * 20):
        counts = generate(asking(stream, "num_input_tokens").but(text_input=prompt)).all_values(
            "num_input_tokens"
        )
        expect.equal("num_input_tokens", set(counts), {len(tokenizer.encode(prompt).ids)})


@pytest.mark.requirement("OUT-010")
def test_num_input_tokens_in_a_crowd(triton_grpc: GrpcClient) -> None:
    for name, (request, responses) in asking_for_all(triton_grpc).items():
        alone = triton_grpc.generate(request).last("num_input_tokens")
        counts = {response.value("num_input_tokens") for response in responses}
        expect.equal(f"num_input_tokens of request {name}", counts, {alone})


@pytest.mark.requirement("OUT-011")
@UNARY_AND_STREAM
@pytest.mark.parametrize("n", [1, 2])
def test_num_input_tokens_has_its_declared_shape(
    triton_grpc: GrpcClient, stream: bool, n: int
) -> None:
    """One number, however many sequences there are."""
    alone = triton_grpc.generate(asking(False, "num_input_tokens")).last("num_input_tokens")
    request = asking(stream, "num_input_tokens", temperature=2.0, n=n)
    for response in triton_grpc.generate(request).ok().data:
        tensor = response.tensor("num_input_tokens")
        expect.equal("datatype and shape", (tensor.datatype, tensor.shape), ("UINT32", (1,)))
        expect.equal("num_input_tokens", tensor.values, [alone])


@pytest.mark.requirement("OUT-012")
@UNARY_AND_STREAM
@pytest.mark.parametrize("count", [1, 7, 40])
def test_num_output_tokens(generate: Generate, stream: bool, count: int) -> None:
    counts = generate(asking(stream, "num_output_tokens", max_tokens=count)).all_values(
        "num_output_tokens"
    )
    expect.equal("sum of num_output_tokens", sum(counts), count)


@pytest.mark.requirement("OUT-012")
@UNARY_AND_STREAM
def test_num_output_tokens_is_one_number(triton_grpc: GrpcClient, stream: bool) -> None:
    answer = triton_grpc.generate(asking(stream, "num_output_tokens"))
    expect_type(answer, "num_output_tokens", "UINT32")


@pytest.mark.requirement("OUT-012")
def test_counts_add_up_in_a_crowd(triton_grpc: GrpcClient) -> None:
    for name, (request, responses) in asking_for_all(triton_grpc).items():
        assert isinstance(request.sampling, dict)
        counts = [response.value("num_output_tokens") for response in responses]
        expect.equal(f"tokens of request {name}", sum(counts), request.sampling["max_tokens"])


@pytest.mark.requirement("OUT-013")
def test_all_flags_combine(triton_grpc: GrpcClient) -> None:
    """Every subset of the flags, streaming and not, with and without sampled logprobs. Of the
    flags that are not in the subset some are sent as False and some not at all."""
    draw = random.Random(13)
    subsets = [
        names
        for size in range(len(ADDITIONAL) + 1)
        for names in itertools.combinations(ADDITIONAL, size)
    ]
    asked = {}
    for stream, logprobs, names in itertools.product((False, True), (None, 0, 2), subsets):
        sampling = {} if logprobs is None else {"logprobs": logprobs}
        others = [name for name in ADDITIONAL if name not in names and draw.random() < 0.5]
        flags = dict.fromkeys(names, True) | dict.fromkeys(others, False)
        request = asking(stream, max_tokens=3, **sampling).but(
            inputs={f"return_{name}": value for name, value in flags.items()}
        )
        asked[str((stream, logprobs, flags))] = (logprobs, names, request)
    answers = on_one_stream(triton_grpc, {name: request for name, (*_, request) in asked.items()})
    for name, (logprobs, names, _) in asked.items():
        # Without logprobs it is the backend's choice (OUT-006): none, or an error that says why.
        free = {"cumulative_logprob"} if logprobs is None else set()
        errors = [response.error for response in answers[name] if response.error]
        if errors and free & set(names):
            expect.contains(f"error of {name}", errors[0], "logprob")
            continue
        data = [response for response in answers[name] if response.outputs]
        expect.that(f"responses with outputs to {name}", len(data), bool, "some")
        for response in data:
            outputs = set(response.outputs) - free
            expect.equal(f"outputs of {name}", outputs, {"text_output", *names} - free)
        expect.equal(f"errors of {name}", errors, [])


@pytest.mark.requirement("OUT-014")
def test_http_outputs_are_scalars(triton_http: HttpClient) -> None:
    body = {
        "text_input": PROMPT,
        "sampling_parameters": json.dumps(
            {"temperature": 0, "max_tokens": 5, "ignore_eos": True, "logprobs": 1}
        ),
        **{f"return_{name}": True for name in ADDITIONAL},
    }
    answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
    expect.equal("HTTP status", answer.status, 200)
    value = answer.json_object()
    types = {name: type(value.get(name)) for name in ADDITIONAL}
    expect.equal(
        "types",
        types,
        {
            "finish_reason": str,
            "cumulative_logprob": float,
            "logprobs": str,
            "num_input_tokens": int,
            "num_output_tokens": int,
        },
    )
    entries = to_generation(GenerateRequest(PROMPT), answer).logprobs()
    expect.equal("entries of logprobs", len(entries), 5)


@pytest.mark.requirement("OUT-015")
@UNARY_AND_STREAM
def test_only_requested_outputs(triton_grpc: GrpcClient, stream: bool) -> None:
    request = asking(stream, "finish_reason")
    for outputs in (("text_output",), ("finish_reason",)):
        answer = triton_grpc.generate(request.but(outputs=outputs))
        for response in answer.ok().data:
            expect.equal("outputs", tuple(response.outputs), outputs)
    off = asking(stream).but(outputs=("text_output", "finish_reason"))
    for response in triton_grpc.generate(off).ok().data:
        expect.equal("outputs", tuple(response.outputs), ("text_output",))


@pytest.mark.requirement("OUT-015")
@UNARY_AND_STREAM
def test_nothing_is_left_of_the_outputs(triton_grpc: GrpcClient, stream: bool) -> None:
    """Only one is requested, and its flag is off: the request ends all the same."""
    with triton_grpc.open(deadline=EMPTY_ANSWER_SECONDS) as call:
        call.send(asking(stream).but(outputs=("finish_reason",)))
        call.half_close()
        responses = list(call)
    expect.equal("errors", [response.error for response in responses if response.error], [])
    expect.equal("outputs", {name for one in responses for name in one.outputs}, set())


@pytest.mark.requirement("OUT-015")
@UNARY_AND_STREAM
def test_nothing_is_lost_without_the_text(triton_grpc: GrpcClient, stream: bool) -> None:
    """Responses may be fewer when their text is not requested; what they count stays the same."""
    request = asking(stream, "num_output_tokens", "logprobs", logprobs=0)
    counts = triton_grpc.generate(request.but(outputs=("num_output_tokens",)))
    numbers = counts.ok().all_values("num_output_tokens")
    expect.equal("sum of num_output_tokens", sum(numbers), 10)
    logprobs = triton_grpc.generate(request.but(outputs=("logprobs",))).ok().logprobs()
    expect.equal("entries of logprobs", len(logprobs), 10)


@pytest.mark.requirement("OUT-016")
@UNARY_AND_STREAM
def test_outputs_of_n_sequences_are_aligned(
    triton_grpc: GrpcClient, known_answer: KnownAnswer, stream: bool
) -> None:
    """Each sequence's outputs equal those of the same seed asked for alone (seed + index).

    At most four tokens: some sequences end by their length, others by a stop string.
    """
    per_sequence = ("finish_reason", "cumulative_logprob", "logprobs", "num_output_tokens")
    hot: dict[str, Any] = {
        "temperature": 2.0,
        "max_tokens": 4,
        "logprobs": 0,
        "stop": ["e", "o"],
        "ignore_eos": False,
    }
    different = False
    for seed in range(300, 400, 10):
        together = triton_grpc.generate(asking(stream, *per_sequence, **hot, n=2, seed=seed))
        for name in ("text_output", *per_sequence):
            shapes = {response.tensor(name).shape for response in together.ok().data}
            expect.equal(f"shapes of {name}", shapes, {(2,)})
        ends: list[str] = []
        for index in range(2):
            alone = triton_grpc.generate(asking(False, *per_sequence, **hot, seed=seed + index))
            expect.equal(f"text {index}", together.text_of(index), alone.text)
            counts = [r.value("num_output_tokens", index) for r in together.data]
            expect.equal(f"tokens {index}", sum(counts), alone.last("num_output_tokens"))
            tokens = [
                list(entry)
                for response in together.data
                if response.value("logprobs", index) not in ("", "null")
                for entry in response.logprobs(index)
            ]
            alone_tokens = [list(entry) for entry in alone.logprobs()]
            expect.equal(f"token ids of logprobs {index}", tokens, alone_tokens)
            # Nothing says what is sent for a sequence that ended before the other one.
            last = max(at for at, count in enumerate(counts) if count)
            reasons = [r.value("finish_reason", index) for r in together.data]
            early, late = ({*some} - {""} for some in (reasons[:last], reasons[last:]))
            expect.equal(f"finish reasons {index} before its end", early, set())
            expect.equal(f"finish reasons {index}", late, {alone.last("finish_reason")})
            logprob = together.data[last].value("cumulative_logprob", index)
            right = alone.last("cumulative_logprob")
            expect.between(f"cumulative_logprob {index}", logprob, right - 0.01, right + 0.01)
            ends.append(alone.last("finish_reason"))
        different |= together.text_of(0) != together.text_of(1) and ends[-1] != ends[-2]
    if not different:
        untested("no seed gave two different texts that end for different reasons")
