"""What a check reads from an answer: an answer of another form is a violation, not a crash."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, Generation, HttpAnswer, Response
from pytest_vllm_triton.clients.http import fields_of_event, text_of_event
from pytest_vllm_triton.clients.messages import Tensor
from pytest_vllm_triton.expect import Violation


def answer(name: str, *values: Any) -> Generation:
    response = Response({name: Tensor([*values])})
    return Generation(GenerateRequest("a"), [response], 200, 0.0)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("text_output", "a", 1),
        ("finish_reason", "stop", None),
        ("logprobs", "null", [{}]),
        ("cumulative_logprob", -0.5, "-0.5"),
        ("num_input_tokens", 3, True),
        ("num_output_tokens", 3, [3]),
    ],
)
def test_type_of_an_output(name: str, good: Any, bad: Any) -> None:
    assert answer(name, good).last(name) == good
    with pytest.raises(Violation, match=f"type of the elements of {name}"):
        answer(name, good, bad).last(name)


def test_missing_sequence() -> None:
    assert answer("text_output", "a", "b").text_of(1) == "b"
    with pytest.raises(Violation, match="number of elements of text_output"):
        answer("text_output", "a").text_of(1)
    with pytest.raises(Violation, match="number of elements of text_output"):
        _ = answer("text_output").text


def test_missing_output() -> None:
    with pytest.raises(Violation, match="outputs of a response"):
        answer("text_output", "a").last("finish_reason")
    with pytest.raises(Violation, match="outputs of a response"):
        answer("text_output", "a").responses[0].tensor("finish_reason")


@pytest.mark.parametrize("text", ["{", "{}", "3", "[{}]", '[{"5": {"logprob": -1}}]'])
def test_logprobs_of_another_form(text: str) -> None:
    with pytest.raises(Violation, match="logprobs"):
        answer("logprobs", text).logprobs()


@pytest.mark.parametrize("value", [None, "2", [2]])
def test_between_needs_a_number(value: Any) -> None:
    with pytest.raises(Violation, match="from 1 to 3"):
        expect.between("it", value, 1, 3)
    expect.between("it", 2, 1, 3)


@pytest.mark.parametrize(
    "event", [b'data: {"error": "no"}', b"data: 3", b'data: {"text_output": 1}']
)
def test_event_without_text(event: bytes) -> None:
    assert text_of_event(b'data: {"text_output": "a"}') == "a"
    with pytest.raises(Violation, match="event"):
        text_of_event(event)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "\xff"}', b"[]", b"null"])
def test_body_that_is_no_object(content: bytes) -> None:
    assert HttpAnswer(200, {}, b'{"a": 1}', 0.0).json_object() == {"a": 1}
    with pytest.raises(Violation, match="body"):
        HttpAnswer(200, {}, content, 0.0).json_object()
    with pytest.raises(Violation, match="event"):
        fields_of_event(b"data: " + content)
