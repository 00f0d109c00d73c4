"""Requests whose answers, and how long they take, are known."""

from __future__ import annotations

from pytest_vllm_triton.clients import (
    GenerateRequest,
    GrpcClient,
)
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models import other_known_answer_model

# The tokens of a long stream, at most.
STREAM_TOKENS = 1800


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
