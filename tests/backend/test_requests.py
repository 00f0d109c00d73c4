"""Triton requests -> values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.requests import STREAM_ECHO, EmbedRequest, GenerateRequest, Wanted, parse
from vllm_triton_backend.sampling import ParameterParser

from .conftest import FakeRequest
from .test_sampling import Params

PARSER = ParameterParser(Params, "sampling_parameters")


def generate(**inputs: Any) -> GenerateRequest:
    request = parse(FakeRequest(**inputs), PARSER)
    assert isinstance(request, GenerateRequest)
    return request


def refused(**inputs: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse(FakeRequest(**inputs), PARSER)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


def test_a_bare_prompt_is_unary_and_echoes() -> None:
    request = generate(text_input="Hi", request_id="7")
    assert (request.prompt, request.stream, request.echo_prompt) == ("Hi", False, True)
    assert (request.request_id, request.sampling, request.wanted) == ("7", {}, Wanted())


@pytest.mark.parametrize(
    ("flags", "echo"),
    [
        ({"exclude_input_in_output": True}, False),
        ({"exclude_input_in_output": False}, True),
        ({"stream": True}, False),
        ({"stream": True, "exclude_input_in_output": True}, False),
    ],
)
def test_echo_contract(flags: dict[str, bool], echo: bool) -> None:
    assert generate(text_input="Hi", **flags).echo_prompt is echo


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (["text_output"], Wanted()),
        (["finish_reason"], Wanted(text_output=False, finish_reason=True)),
        (["finish_reason", "logprobs"], Wanted(text_output=False, finish_reason=True)),
    ],
)
def test_outputs_that_the_client_does_not_name_are_not_wanted(
    named: list[str], wanted: Wanted
) -> None:
    request = generate(text_input="Hi", named=named, return_finish_reason=True)
    assert request.wanted == wanted


def test_flags_may_come_either_way_in_one_request() -> None:
    parameters = json.dumps({"return_finish_reason": True, "exclude_input_in_output": True})
    request = generate(text_input="Hi", return_logprobs=True, parameters=parameters)
    assert request.wanted == Wanted(finish_reason=True, logprobs=True)
    assert not request.echo_prompt


def test_streaming_refuses_to_echo() -> None:
    assert refused(text_input="Hi", stream=True, exclude_input_in_output=False) == STREAM_ECHO


def test_the_tensor_wins_over_request_parameters() -> None:
    request = generate(
        text_input="Hi",
        sampling_parameters='{"n": 2, "lora_name": "a", "priority": 3}',
        parameters='{"n": 5, "lora_name": "b", "foo": 1}',
    )
    assert (request.sampling, request.lora_name, request.priority) == ({"n": 2}, "a", 3)


def test_request_parameters_without_the_tensor() -> None:
    parameters = {
        "n": 2,
        "lora_name": "b",
        "return_finish_reason": True,
        "timeout": 1_500_000,
        "priority": "u=1",
        "x-header": "y",
        "traceparent": "00-1-2-01",
    }
    request = generate(text_input="Hi", parameters=json.dumps(parameters))
    assert (request.sampling, request.lora_name, request.priority) == ({"n": 2}, "b", 0)
    assert request.wanted.finish_reason
    assert request.timeout == 1.5
    assert request.trace_headers == {"traceparent": "00-1-2-01"}


def test_a_flag_may_be_a_request_parameter_whatever_its_value() -> None:
    parameters = json.dumps({"exclude_input_in_output": False})
    assert refused(text_input="Hi", stream=True, parameters=parameters) == STREAM_ECHO


def test_a_priority_below_zero_may_be_a_request_parameter() -> None:
    assert generate(text_input="Hi", parameters='{"priority": -3}').priority == -3


def test_bad_inputs_are_named() -> None:
    assert "'text_input' is required" in refused(stream=True)
    assert "'text_input' is not valid UTF-8" in refused(text_input=b"\xff")
    assert "'sampling_parameters' is not valid UTF-8" in refused(
        text_input="a", sampling_parameters=b"\xff"
    )
    assert "'lora_name'" in refused(text_input="a", sampling_parameters='{"lora_name": 1}')
    for priority in ('"x"', "1.5", "true", "1e400", "18446744073709551616"):
        text = f'{{"priority": {priority}}}'
        assert "'priority' must be" in refused(text_input="a", sampling_parameters=text)


def test_a_forwarded_priority_header_is_no_parameter_of_an_embedding() -> None:
    text = json.dumps({"input": "text", "pooling_params": {}})
    request = parse(
        FakeRequest(embedding_request=text, parameters='{"priority": "u=1, i"}'), PARSER
    )
    assert isinstance(request, EmbedRequest)
    assert request.priority == 0


@pytest.mark.parametrize(
    ("content", "expected"), [("text", "text"), ([1, 2], (1, 2))], ids=["text", "tokens"]
)
def test_embedding_request(content: object, expected: object) -> None:
    text = json.dumps({"input": content, "pooling_params": {"dimensions": [4], "x": None}})
    request = parse(FakeRequest(embedding_request=text), PARSER)
    assert isinstance(request, EmbedRequest)
    assert (request.input, request.pooling) == (expected, {"dimensions": 4})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"input": []}', '{"input": ""}', '{"input": [true]}'),
        *('{"input": [-1]}', '{"input": [9223372036854775808]}', r'{"input": "\ud8"}'),
    ],
)
def test_bad_embedding_requests(text: str) -> None:
    assert "Invalid embedding_request" in refused(embedding_request=text)


def test_an_id_may_hold_any_bytes() -> None:
    class WithOddId(FakeRequest):
        def request_id(self) -> str:
            return b"7\xff".decode()

    assert parse(WithOddId(text_input="Hi"), PARSER).request_id == "7\N{REPLACEMENT CHARACTER}"
