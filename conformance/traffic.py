"""Requests whose answers are known, one by one, many at once, or all the time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, Generation, GrpcClient, Response
from pytest_vllm_triton.expect import Violation, Words
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models.under_test import ModelUnderTest, other_known_answer_model

# The tokens of a long stream, at most.
STREAM_TOKENS = 1800
T = TypeVar("T")


def greedy(prompt: str, tokens: int, *, stream: bool = False) -> GenerateRequest:
    """A request whose answer has exactly this many tokens."""
    sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return GenerateRequest(prompt, stream=stream or None, sampling=sampling)


def long_stream(client: GrpcClient, prompt: str, seconds: float) -> GenerateRequest:
    """A stream of about so many seconds on this server, or of as many tokens as fit."""
    sample = STREAM_TOKENS // 18
    took = client.generate(greedy(prompt, sample)).ok().seconds
    tokens = int(sample * seconds / took)
    return greedy(prompt, min(max(tokens, sample), STREAM_TOKENS), stream=True)


def expected_text(oracle: KnownAnswer, request: GenerateRequest) -> str:
    """What the model must answer: with the prompt, unless it streams."""
    assert isinstance(request.sampling, dict)
    prompt = str(request.text_input)
    text = oracle.answer(prompt, max_tokens=request.sampling["max_tokens"], ignore_eos=True).text
    return text if request.stream else prompt + text


def words_of(oracle: KnownAnswer) -> list[str]:
    return [piece.strip() for piece in oracle.spec.story if piece.strip().isalpha()]


def second_oracle() -> KnownAnswer:
    oracle = other_known_answer_model().known_answer
    assert oracle is not None
    return oracle


def first_of(responses: Iterable[T]) -> T:
    """The first response of a stream.

    Raises:
        Violation: it ended without any.
    """
    for response in responses:
        return response
    raise Violation(
        "first response of the stream", Words("one"), Words("the stream ended without a response")
    )


def on_one_stream(
    client: GrpcClient, requests: Mapping[str, GenerateRequest], deadline: float | None = None
) -> dict[str, list[Response]]:
    """The responses to requests that are sent all at once, with these ids; by id."""
    with client.open(deadline=deadline) as stream:
        for name, request in requests.items():
            stream.send(request.but(id=name))
        stream.half_close()
        return by_id(stream, requests)


def by_id(responses: Iterable[Response], ids: Iterable[str]) -> dict[str, list[Response]]:
    """The responses of a stream up to its end; by the id that they carry.

    Raises:
        Violation: it is none of those that were sent.
    """
    found: dict[str, list[Response]] = {name: [] for name in ids}
    for response in responses:
        if response.id not in found:
            what = f"id of a response (error: {response.error})"
            raise Violation(what, Words("one that was sent"), response.id)
        found[response.id].append(response)
    return found


def pieces(responses: Iterable[Response]) -> list[str]:
    """The text of each response.

    Raises:
        Violation: one of them is an error.
    """
    texts = []
    for response in responses:
        expect.equal("error", response.error, None)
        texts.append(response.text)
    return texts


def text_or_error(answer: Generation | Exception) -> str:
    """The text of an answer, or in its place what went wrong."""
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {answer}"
    return answer.text if answer.error is None and answer.data else f"error: {answer.error}"


def at_once(
    send: Callable[[GenerateRequest], Generation], requests: Iterable[GenerateRequest], threads: int
) -> list[str]:
    """Send the requests from this many threads; the texts, or errors, in the order of requests."""

    def one(request: GenerateRequest) -> str:
        try:
            return text_or_error(send(request))
        except Exception as error:
            return text_or_error(error)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, requests))


def expect_told_alike(
    what: str,
    model: ModelUnderTest,
    requests: Sequence[GenerateRequest],
    texts: Sequence[str],
    alone: Sequence[str],
) -> None:
    """The requests got the same texts at the same time as each of them gets alone.

    With the known-answer model, exactly the same. Other models' kernels add numbers up in an order
    that depends on the size of the batch, and that can decide between two tokens of nearly the same
    probability. So with those models a quarter of the texts, or one if there are fewer than eight,
    may differ in their stable part. A text that differs must still begin with its own prompt where
    the prompt is echoed, must not end early, and must not have changed places with another one.
    """
    told, own = [[*map(model.stable_part, some)] for some in (texts, alone)]
    if model.known_answer is not None:
        expect.equal(what, told, own)
        return
    for request, text in zip(requests, texts, strict=True):
        if not request.stream and not request.exclude_input_in_output:
            expect.starts_with(what, text, str(request.text_input))
    others = [index for index, part in enumerate(told) if part != own[index]]
    cut_short = [texts[index] for index in others if alone[index].startswith(texts[index])]
    expect.equal(f"{what} that end early", cut_short, [])
    swapped = [
        (told[one], told[other])
        for one, other in itertools.combinations(others, 2)
        if told[one] == own[other] and told[other] == own[one]
    ]
    expect.equal(f"{what} that have changed places", swapped, [])
    if len(others) > max(1, len(told) // 4):
        expect.equal(what, told, own)


class Background:
    """Sends the same request again and again while something else happens.

    Use it as a context manager; `answers` is complete afterwards.
    """

    def __init__(self, client: GrpcClient, request: GenerateRequest) -> None:
        self.answers: list[Generation | Exception] = []
        self._client = client
        self._request = request
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.answers.append(self._client.generate(self._request))
            except Exception as error:
                self.answers.append(error)
                return

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def texts(self) -> set[str]:
        """The distinct texts that came; an error is shown as itself."""
        return {text_or_error(answer) for answer in self.answers}
