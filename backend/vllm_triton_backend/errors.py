"""Typed errors of the backend and their Triton codes.

Source of the codes: python_backend's README ("Supported error codes") and `pb_utils.TritonError`
of Triton 24.10. HTTP statuses on newer servers: INVALID_ARG 400, INTERNAL 500,
UNAVAILABLE 503; Triton 24.10 answers 400 for all of them.
"""

from __future__ import annotations

import enum
from typing import Any

# Bytes of UTF-8. Where an error ends a gRPC stream its text travels in the trailers, each byte that
# is no ASCII as three; of trailers between 8 and 16 KiB a client refuses some, by chance.
_LONGEST = 1000


class Code(enum.Enum):
    """Name of a `pb_utils.TritonError` code, of those that this backend answers with."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class LoadError(Exception):
    """The model cannot be loaded; the text is shown by Triton's load API as it is."""


class RequestError(Exception):
    """One request cannot be answered.

    Becomes exactly one final response that carries the code and the text and no tensors.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> RequestError:
    """The client's mistake: INVALID_ARG."""
    return RequestError(Code.INVALID_ARG, message)


CANCELLED = "Request was cancelled"
SHUTTING_DOWN = "Model is unavailable because it is being unloaded"
UNHEALTHY = "Model is unavailable due to unhealthy vLLM engine"


def to_triton(error: RequestError, pb_utils: Any) -> Any:
    """`error` as a `pb_utils.TritonError`.

    A server whose `pb_utils` does not know the code gets the error without one (INTERNAL). Of a
    long text, which may quote what the client sent, the beginning is told.
    """
    told = error.message.encode(errors="replace")
    text = told[:_LONGEST].decode(errors="ignore")
    if len(told) > _LONGEST:
        text += "…"
    code = getattr(pb_utils.TritonError, error.code.name, None)
    if code is None:
        return pb_utils.TritonError(text)
    return pb_utils.TritonError(text, code)
