"""Requests whose answers, and how long they take, are known."""

from __future__ import annotations

from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
)
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models import other_known_answer_model

# How long a stream has to run for something to happen to it meanwhile, and its tokens at most.
STREAM_SECONDS = 5.0
STREAM_TOKENS = 1800


def greedy(prompt: str, tokens: int, *, stream: bool = False) -> GenerateRequest:
    """A request whose answer has exactly this many tokens."""
    sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return GenerateRequest(prompt, stream=stream or None, sampling=sampling)


def long_stream(client: GrpcClient, prompt: str) -> GenerateRequest:
    """A stream of at least five seconds on this server, or of as many tokens as fit.

    By the quickest of three samples: one that was slow would make a stream that ends too early.
    """
    sample = STREAM_TOKENS // 18
    seconds = min(client.generate(greedy(prompt, sample)).ok().seconds for _ in range(3))
    tokens = int(sample * STREAM_SECONDS / seconds)
    return greedy(prompt, min(max(tokens, sample), STREAM_TOKENS), stream=True)


def told(oracle: KnownAnswer, request: GenerateRequest) -> str:
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
