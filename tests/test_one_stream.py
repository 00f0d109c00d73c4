"""Requests that share a gRPC stream: what came for each of them, or what is wrong with it."""

from __future__ import annotations

import pytest

from conformance.traffic import by_id, pieces
from pytest_vllm_triton.clients import Response, Tensor
from pytest_vllm_triton.expect import Violation


def response(name: str, text: str) -> Response:
    return Response({"text_output": Tensor([text])}, id=name)


def test_each_request_has_its_own_responses() -> None:
    came = [response("b", " one"), response("a", " two"), response("b", " three")]
    answers = by_id(came, ("a", "b", "c"))
    assert {name: pieces(some) for name, some in answers.items()} == {
        "a": [" two"],
        "b": [" one", " three"],
        "c": [],
    }


@pytest.mark.parametrize("name", ["", "c"])
def test_id_that_was_not_sent_is_a_violation(name: str) -> None:
    with pytest.raises(Violation, match="id of a response") as raised:
        by_id([response("a", "x"), response(name, "y")], ("a", "b"))
    assert (raised.value.expected, raised.value.actual) == ("one that was sent", repr(name))


def test_call_that_fails_says_why() -> None:
    """Such a response has no id."""
    with pytest.raises(Violation, match="Socket closed"):
        by_id([Response({}, error="Socket closed")], ("a",))


def test_error_has_no_text() -> None:
    with pytest.raises(Violation) as raised:
        pieces([response("a", "x"), Response({}, error="no", id="a")])
    assert (raised.value.what, raised.value.actual) == ("error", "'no'")
