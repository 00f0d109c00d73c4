"""STR: streaming over server-sent events and gRPC."""

from __future__ import annotations

import json

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import (
    Generate,
    GenerateRequest,
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.clients.http import (
    fields_of_event,
    http_body,
    text_of_event,
    to_generation,
)
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness

from .base_requests import PROMPT
from .engine_limits import needs_context
from .traffic import first_of, on_one_stream, pieces, words_of
from .waits import crowd_deadline

FORTY_TOKENS = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
UNARY = GenerateRequest(PROMPT, sampling=FORTY_TOKENS, exclude_input_in_output=True)
STREAM = GenerateRequest(PROMPT, stream=True, sampling=FORTY_TOKENS)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.requirement("STR-001")
def test_server_sent_events(triton_http: HttpClient) -> None:
    # What a backend that stood still has to send then, it may send as one response.
    for tokens in (20, 200, 800):
        parameters = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body = {"text_input": PROMPT, "stream": True, "parameters": parameters}
        answer = triton_http.request("POST", triton_http.path("generate_stream"), json_body=body)
        if len(answer.events) >= 2:
            break
    expect.equal("HTTP status", answer.status, 200)
    expect.equal(
        "Content-Type", answer.headers.get("content-type"), "text/event-stream; charset=utf-8"
    )
    expect.that("number of events", len(answer.events), lambda n: n >= 2, "at least 2")
    joined = b"".join(event + b"\n\n" for _, event in answer.events)
    expect.equal("bytes outside of events", answer.content.replace(joined, b"", 1), b"")
    for _, event in answer.events:
        expect.that("event", event, lambda e: e.startswith(b"data: {"), "data: {json}")
        keys = fields_of_event(event).keys()
        for key in ("model_name", "model_version", "text_output"):
            expect.contains("keys of an event", keys, key)


@pytest.mark.requirement("STR-002")
@pytest.mark.parametrize("exclude", [None, True], ids=["default", "exclude"])
def test_joined_stream_is_the_unary_text(generate: Generate, exclude: bool | None) -> None:
    streamed = generate(STREAM.but(exclude_input_in_output=exclude)).text
    expect.equal("joined text_output", streamed, generate(UNARY).text)


@pytest.mark.requirement("STR-002")
def test_every_prompt_gets_its_own_stream(generate: Generate, known_answer: KnownAnswer) -> None:
    """Up to the end of the story: the last chunk counts as much as the first."""
    for prompt in ("Say alpha", "Say tango", "Ünï ¢ödé 你好 lima"):
        request = STREAM.but(text_input=prompt, sampling={"temperature": 0, "max_tokens": 64})
        expected = known_answer.answer(prompt, max_tokens=64).text
        expect.equal(f"joined text_output after {prompt!r}", generate(request).text, expected)


@pytest.mark.requirement("STR-002")
@pytest.mark.parametrize("prompt", [PROMPT, " alpha"])
def test_equal_pieces_are_all_sent(
    generate: Generate, known_answer: KnownAnswer, prompt: str
) -> None:
    expect_eight_times(generate, prompt, known_answer.story_ids[0], " alpha")


@pytest.mark.requirement("STR-002")
@pytest.mark.parametrize("symbol", ["\n", "\t", "#", "<", "&", "}"])
def test_symbols_are_text_like_any_other(
    generate: Generate, known_answer: KnownAnswer, symbol: str
) -> None:
    """Line breaks end no text and are not trimmed, and nothing is escaped."""
    expect_eight_times(generate, PROMPT, known_answer.tokenize(symbol)[-1], symbol)


def expect_eight_times(generate: Generate, prompt: str, token: int, text: str) -> None:
    """The model may say nothing but this token."""
    sampling = {
        "temperature": 0,
        "max_tokens": 8,
        "allowed_token_ids": [token],
        "ignore_eos": True,
    }
    for request in (STREAM, UNARY):
        answer = generate(request.but(text_input=prompt, sampling=sampling))
        expect.equal(f"text_output (stream={request.stream})", answer.text, text * 8)


@pytest.mark.requirement("STR-003")
def test_responses_are_deltas(generate: Generate) -> None:
    answer = generate(STREAM)
    full = generate(UNARY).text
    pieces = [response.text for response in answer.ok().data]
    expect.that("first piece", pieces[0], lambda t: PROMPT not in t, "no prompt")
    position = 0
    for piece in pieces:
        expect.equal("piece", piece, full[position : position + len(piece)])
        position += len(piece)


@pytest.mark.requirement("STR-004")
def test_stream_with_echo_is_refused(generate: Generate) -> None:
    answer = generate(STREAM.but(exclude_input_in_output=False))
    expect.contains(
        "error",
        answer.failed(),
        "When streaming, `exclude_input_in_output` = False is not allowed.",
    )
    expect.equal("number of responses", len(answer.responses), 1)
    if isinstance(answer.status, int):
        expect.between("HTTP status", answer.status, 400, 499)


@pytest.mark.requirement("STR-005")
def test_tokens_arrive_while_others_are_made(generate: Generate) -> None:
    """Longer and longer texts until one is seen to arrive bit by bit.

    On a busy host the reader or the engine's own threads stand still for half a second now and
    then; a backend that holds responses back does so for every length.
    """
    seen = []
    for count in (200, 400, 800, 1600):
        sampling = {"temperature": 0, "max_tokens": count, "ignore_eos": True}
        times = [response.at for response in generate(STREAM.but(sampling=sampling)).ok().data]
        part, distinct = times[0] / times[-1], len(set(times))
        if part < 0.5 and distinct >= 20:
            return
        seen.append(f"{count} tokens: first after {part:.0%}, {distinct} arrival times")
    raise expect.Violation(
        "arrival of streamed responses",
        expect.Words(
            "the first in under 50 % of the time of the last, at 20 distinct times or more"
        ),
        seen,
    )


# Of one stream, and of each of many, which may hold more: a backend is not to choke on them.
@pytest.mark.requirement("STR-005")
@pytest.mark.parametrize(("streams", "tokens"), [(1, 10), (24, 50)])
def test_responses_hold_few_tokens(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, streams: int, tokens: int
) -> None:
    """Longer and longer texts until one comes in many responses, as above."""
    seen = []
    for count in (200, 400, 800):
        sampling = {"temperature": 0, "max_tokens": count, "ignore_eos": True}
        requests = dict.fromkeys(map(str, range(streams)), STREAM.but(sampling=sampling))
        answers = on_one_stream(triton_grpc, requests, crowd_deadline(vllm_model))
        fewest = min(sum(map(bool, pieces(responses))) for responses in answers.values())
        if fewest >= count / tokens:
            return
        seen.append(f"{count} tokens in {fewest} responses")
    raise expect.Violation(
        f"each of {streams} streams", expect.Words(f"{tokens} tokens a response at most"), seen
    )


@pytest.mark.requirement("STR-006")
@pytest.mark.parametrize("stream", [None, False], ids=["absent", "false"])
def test_stream_endpoint_without_stream(triton_http: HttpClient, stream: bool | None) -> None:
    request = UNARY.but(exclude_input_in_output=None)
    body = http_body(request.but(stream=stream))
    answer = triton_http.request("POST", triton_http.path("generate_stream"), json_body=body)
    expect.equal("number of events", len(answer.events), 1)
    text = text_of_event(answer.events[0][1])
    expect.equal("text_output", text, triton_http.generate(request).text)


@pytest.mark.requirement("STR-007")
def test_early_failure_is_an_error_status(triton_http: HttpClient) -> None:
    path = triton_http.path("generate_stream")
    body = http_body(STREAM.but(sampling={"temperature": -1}))
    refused = triton_http.request("POST", path, json_body=body)
    expect.between("HTTP status of a refused parameter", refused.status, 400, 599)
    expect.equal("number of events", len(refused.events), 1)
    expect.that(
        "event", refused.events[0][1], lambda e: e.startswith(b'data: {"error":'), "an error object"
    )
    malformed = triton_http.request("POST", path, content=b'{"text_input": ')
    expect.between("HTTP status of malformed JSON", malformed.status, 400, 599)
    expect.equal(
        "Content-Type of malformed JSON", malformed.headers.get("content-type"), "application/json"
    )


@pytest.mark.requirement("STR-008")
def test_no_character_is_torn(generate: Generate, known_answer: KnownAnswer) -> None:
    """The story holds an emoji and an accented letter that are several tokens each."""
    answer = generate(STREAM.but(text_input="Say alpha"))
    expected = known_answer.answer("Say alpha", max_tokens=40, ignore_eos=True).text
    for response in answer.ok().data:
        response.text.encode("utf-8")
        expect.that("piece", response.text, lambda t: REPLACEMENT not in t, "no U+FFFD")
    expect.equal("joined text_output", answer.text, expected)


@pytest.mark.requirement("STR-008")
def test_text_that_ends_inside_a_character(generate: Generate, known_answer: KnownAnswer) -> None:
    """Cut at every token of the emoji: the stream ends as the unary text does."""
    story = known_answer.answer("Say alpha", max_tokens=40)
    torn = [i for i, fragment in enumerate(story.fragments, 1) if not fragment][:3]
    for count in torn:
        sampling = {"temperature": 0, "max_tokens": count}
        expected = known_answer.answer("Say alpha", max_tokens=count).text
        streamed = generate(STREAM.but(text_input="Say alpha", sampling=sampling))
        unary = generate(UNARY.but(text_input="Say alpha", sampling=sampling))
        expect.equal(f"unary text of {count} tokens", unary.text, expected)
        expect.equal(f"streamed text of {count} tokens", streamed.text, expected)


@pytest.mark.requirement("STR-009")
@pytest.mark.parametrize("empty_final", [False, True], ids=["default", "empty-final-enabled"])
@pytest.mark.parametrize(
    "request_",
    [
        STREAM,
        UNARY,
        STREAM.but(text_input="Say alpha", sampling={"temperature": 0, "max_tokens": 64}),
        STREAM.but(text_input="Say zulu", sampling={"temperature": 0, "max_tokens": 64}),
        STREAM.but(sampling={"temperature": 0, "max_tokens": 1}),
    ],
    ids=["length", "unary", "to the end", "empty", "one token"],
)
def test_final_flag_is_on_the_last_data(
    triton_grpc: GrpcClient, request_: GenerateRequest, empty_final: bool
) -> None:
    answer = triton_grpc.generate(request_, empty_final=empty_final)
    flags = [response.final for response in answer.ok().responses]
    expect.equal("triton_final_response flags", flags, [False] * (len(flags) - 1) + [True])
    expect.contains("outputs of the last response", answer.responses[-1].outputs, "text_output")


@pytest.mark.requirement("STR-010")
def test_two_requests_on_one_stream(triton_grpc: GrpcClient, vllm_model: ModelUnderTest) -> None:
    prompts = {"a": PROMPT, "b": "Say lima"}
    expected = {
        key: triton_grpc.generate(UNARY.but(text_input=prompt)).text
        for key, prompt in prompts.items()
    }
    counted = STREAM.but(returns=("num_output_tokens",))
    requests = {key: counted.but(text_input=prompt) for key, prompt in prompts.items()}
    for key, received in on_one_stream(triton_grpc, requests).items():
        expect.equal(
            f"joined text_output of request {key}",
            vllm_model.stable_part("".join(pieces(received))),
            vllm_model.stable_part(expected[key]),
        )
        tokens = sum(response.value("num_output_tokens") for response in received)
        expect.equal(f"tokens of request {key}", tokens, FORTY_TOKENS["max_tokens"])
        expect.equal(f"last flag of request {key}", received[-1].final, True)


@pytest.mark.requirement("STR-011")
def test_token_counts_add_up(generate: Generate) -> None:
    request = STREAM.but(returns=("num_output_tokens",))
    counts = generate(request).all_values("num_output_tokens")
    expect.equal("sum of num_output_tokens", sum(counts), FORTY_TOKENS["max_tokens"])


@pytest.mark.requirement("STR-013")
def test_deltas_of_n_sequences(generate: Generate, known_answer: KnownAnswer) -> None:
    sampling = {"temperature": 2.0, "max_tokens": 30, "n": 3, "seed": 11}
    streamed = generate(STREAM.but(sampling=sampling))
    unary = generate(UNARY.but(sampling=sampling)).ok().data[0].values("text_output")
    texts = [streamed.text_of(index) for index in range(3)]
    expect.equal("joined deltas by index", texts, unary)


@pytest.mark.requirement("STR-014")
def test_server_survives_a_closed_connection(triton_http: HttpClient) -> None:
    body = http_body(STREAM.but(sampling={"max_tokens": 1000, "ignore_eos": True}))
    path = triton_http.path("generate_stream")
    for _ in range(3):
        with triton_http.opened("POST", path, json.dumps(body).encode()) as stream:
            first_of(stream.events())
    expect.equal("/v2/health/live", triton_http.get("/v2/health/live").status, 200)
    expect.equal("HTTP status of the next request", triton_http.generate(UNARY).status, 200)


@pytest.mark.requirement("STR-015")
def test_slow_reader_loses_nothing(
    triton_grpc: GrpcClient,
    triton_http: HttpClient,
    vllm_model: ModelUnderTest,
    vllm_harness: Harness,
) -> None:
    """While one reader stands still, others are served; then it reads everything."""
    needs_context(vllm_harness, 450)
    sampling = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}
    expected = triton_grpc.generate(UNARY.but(sampling=sampling)).text
    request = STREAM.but(sampling=sampling, returns=("num_output_tokens",))
    body = json.dumps(http_body(request)).encode()
    with triton_http.opened("POST", triton_http.path("generate_stream"), body) as stream:
        events = stream.events()
        first_of(events)
        others = [triton_grpc.generate(request) for _ in range(2)]
        for _ in events:
            pass
        slow = to_generation(request, stream.answer())
    stable = vllm_model.stable_part
    text = "".join(pieces(slow.responses))
    expect.equal("text of the slow reader", stable(text), stable(expected))
    tokens = sum(slow.all_values("num_output_tokens"))
    expect.equal("tokens of the slow reader", tokens, sampling["max_tokens"])
    for other in others:
        expect.equal("text of another reader", stable(other.text), stable(expected))
        tokens = sum(other.all_values("num_output_tokens"))
        expect.equal("tokens of another reader", tokens, sampling["max_tokens"])


@pytest.mark.requirement("STR-016")
def test_error_leaves_the_stream_usable(triton_grpc: GrpcClient) -> None:
    with triton_grpc.open() as stream:
        stream.send(STREAM.but(sampling={"temperature": -1}, id="bad"))
        stream.send(UNARY.but(id="good"))
        stream.half_close()
        responses = {response.id or "bad": response for response in stream}
    expect.equal("ids of the responses", set(responses), {"bad", "good"})
    expect.that("error of the bad request", responses["bad"].error, bool, "an error text")
    expect.equal("error of the good request", responses["good"].error, None)
    expect.equal("status of the stream", stream.status, "OK")


@pytest.mark.requirement("STR-016")
def test_grpc_error_mode_ends_the_stream(triton_grpc: GrpcClient) -> None:
    """With which status is ERR-019's."""
    answer = triton_grpc.until_error(STREAM.but(sampling={"temperature": -1}))
    expect.different("gRPC status", answer.status, "OK")
    expect.that("error", answer.error, bool, "an error text")
    messages = [response for response in answer.responses if response.error is None]
    expect.equal("number of messages before it", len(messages), 0)


@pytest.mark.requirement("STR-017")
def test_concurrent_streams_keep_apart(triton_grpc: GrpcClient, known_answer: KnownAnswer) -> None:
    """24 prompts at once, each at another place of the story: every stream tells its own."""
    words = words_of(known_answer)[:24]
    prompts = {word: f"Say {word}" for word in words}
    sampling = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    expected = {
        word: known_answer.answer(prompt, max_tokens=12, ignore_eos=True).text
        for word, prompt in prompts.items()
    }
    requests = {
        word: STREAM.but(text_input=prompt, sampling=sampling) for word, prompt in prompts.items()
    }
    answers = on_one_stream(triton_grpc, requests)
    texts = {word: "".join(pieces(responses)) for word, responses in answers.items()}
    expect.equal("joined text_output by request", texts, expected)
