"""Clients of a Triton server that speak plain values, keep transcripts and never wait for ever.

`GenerateRequest` describes one request to a vLLM model; `HttpClient` and `GrpcClient` send it and
return a `Generation`: the same type for both protocols, unary and streaming, so that one check can
cover all four.
"""

from __future__ import annotations

from pytest_vllm_triton.clients.grpc import GrpcClient, GrpcStream
from pytest_vllm_triton.clients.http import HttpAnswer, HttpClient
from pytest_vllm_triton.clients.messages import (
    Generate,
    GenerateRequest,
    Generation,
    Response,
    Tensor,
    Unanswered,
)

__all__ = [
    "Generate",
    "GenerateRequest",
    "Generation",
    "GrpcClient",
    "GrpcStream",
    "HttpAnswer",
    "HttpClient",
    "Response",
    "Tensor",
    "Unanswered",
]
