"""Client values -> keyword arguments of a SamplingParams-like class."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.sampling import MOST_LEVELS, ParameterParser


@dataclasses.dataclass
class Structured:
    json: str | dict[str, Any] | None = None
    choice: list[str] | None = None
    _backend: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.json is None and self.choice is None:
            raise ValueError("one constraint is needed")


@dataclasses.dataclass
class Params:
    n: int = 1
    temperature: float = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    structured_outputs: Structured | None = None
    extra_args: dict[str, Any] | None = None
    output_kind: int = 0
    _private: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}.")


@pytest.fixture
def parser() -> ParameterParser:
    return ParameterParser(Params, "sampling_parameters")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("temperature", "0.1", 0.1),
        ("temperature", 0, 0.0),
        ("max_tokens", "5", 5),
        ("max_tokens", 5.0, 5),
        ("ignore_eos", "false", False),
        ("ignore_eos", "True", True),
        ("ignore_eos", 1, True),
        ("stop", ".", "."),
        ("stop", ["a", "b"], ["a", "b"]),
        ("stop_token_ids", "[1, 2]", [1, 2]),
        ("stop_token_ids", ["3"], [3]),
        ("logit_bias", {"7": 1}, {7: 1.0}),
        ("logit_bias", '{"7": "-1"}', {7: -1.0}),
        ("structured_outputs", {"choice": ["a"], "_backend": "x"}, Structured(choice=["a"])),
        ("structured_outputs", '{"json": {"type": "object"}}', Structured(json={"type": "object"})),
        ("guided_decoding", {"choice": ["a"], "backend": "x"}, Structured(choice=["a"])),
        ("extra_args", {"k": [1]}, {"k": [1]}),
    ],
)
def test_a_value_becomes_the_type_that_the_class_declares(
    parser: ParameterParser, name: str, given: object, expected: object
) -> None:
    (value,) = parser.convert({name: given}).values()
    assert value == expected
    assert type(value) is type(expected)


def test_null_is_the_same_as_leaving_the_parameter_out(parser: ParameterParser) -> None:
    assert parser.build({"max_tokens": None, "temperature": None}) == Params()


@pytest.mark.parametrize("unset", ["structured_outputs", "guided_decoding"])
def test_one_of_both_names_of_structures_may_be_null(parser: ParameterParser, unset: str) -> None:
    names = {"structured_outputs": {"choice": ["a"]}, "guided_decoding": {"choice": ["a"]}}
    given = {**names, unset: None}
    assert parser.convert(given) == {"structured_outputs": Structured(choice=["a"])}
    assert parser.convert(dict(reversed(given.items()))) == parser.convert(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"foo": 1}, ["unknown parameter 'foo'"]),
        ({"temprature": 1}, ["'temprature'", "Did you mean 'temperature'?"]),
        ({"output_kind": 1}, ["unknown parameter 'output_kind'"]),
        ({"_private": 1}, ["unknown parameter '_private'"]),
        ({"max_tokens": "abc"}, ["'max_tokens' must be an integer", '"abc"']),
        ({"max_tokens": 1.5}, ["'max_tokens' must be an integer"]),
        ({"max_tokens": True}, ["'max_tokens' must be an integer"]),
        ({"temperature": "NaN"}, ["'temperature' must be a finite number"]),
        ({"temperature": []}, ["'temperature' must be a number"]),
        ({"seed": 2**63}, ["'seed' must be an integer of 64 bits"]),
        ({"seed": "-9223372036854775809"}, ["'seed' must be an integer of 64 bits"]),
        ({"max_tokens": 1e20}, ["'max_tokens' must be an integer of 64 bits"]),
        ({"ignore_eos": "maybe"}, ["'ignore_eos' must be true or false"]),
        ({"ignore_eos": 2}, ["'ignore_eos' must be true or false"]),
        ({"stop": 5}, ["'stop' must be"]),
        ({"stop_token_ids": [1, "x"]}, ["'stop_token_ids' must be a list", '"x"']),
        ({"logit_bias": {"x": 1}}, ["'logit_bias'", "every key is an integer"]),
        ({"structured_outputs": {"nonsense": 1}}, ["'structured_outputs'", "'nonsense'"]),
        ({"structured_outputs": {}}, ["'structured_outputs'", "one constraint is needed"]),
        ({"structured_outputs": {"choice": ["a"]}, "guided_decoding": {"choice": ["b"]}}, ["one"]),
        # Deeper than Python's parser of JSON goes.
        ({"structured_outputs": "[" * 100_000}, ["'structured_outputs'"]),
        ({"guided_decoding": "[" * 100_000}, ["'structured_outputs'"]),
        ({"n": 0}, ["n must be at least 1, got 0."]),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(
    parser: ParameterParser, given: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        parser.build(given)
    assert caught.value.code is Code.INVALID_ARG
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        *("", "{bad", "[1]", "5", "null", "[" * 100_000, r'{"stop": "\ud800"}'),
        '{"extra_args": ' + "[" * MOST_LEVELS + "]" * MOST_LEVELS + "}",
    ],
)
def test_sampling_parameters_must_be_a_json_object(parser: ParameterParser, text: str) -> None:
    with pytest.raises(RequestError, match="expected a valid JSON object") as caught:
        parser.from_json(text)
    assert caught.value.code is Code.INVALID_ARG


def test_forwarded_headers_are_ignored_among_request_parameters(parser: ParameterParser) -> None:
    parameters = {
        "temperature": 0.5,
        "id": "42",
        "x-request-id": "abc",
        "authorization": "Bearer x",
        "triton_enable_empty_final_response": True,
    }
    assert parser.pick_request_parameters(parameters) == {"temperature": 0.5}


@pytest.mark.parametrize("parameters", [{"foo": 1}, {"foo": True}, {"temprature": "0.5"}])
def test_other_unknown_request_parameters_are_refused(
    parser: ParameterParser, parameters: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="unknown parameter"):
        parser.pick_request_parameters(parameters)


def test_json_that_every_process_can_carry() -> None:
    parser = ParameterParser(Params, "sampling_parameters")
    levels = MOST_LEVELS - 1
    nested = "[" * levels + "]" * levels
    assert parser.from_json(f'{{"extra_args": {nested}}}')
    wide = ", ".join(["[]"] * 1000)
    assert parser.from_json(f'{{"extra_args": [{wide}]}}')


@dataclasses.dataclass
class PoolingParams:
    dimensions: int | None = None
    task: str | None = None
    requires_token_ids: bool = False
    late_interaction_params: Any = None
    extra_kwargs: dict[str, Any] | None = None


@pytest.mark.parametrize(
    "name", ["task", "requires_token_ids", "late_interaction_params", "extra_kwargs"]
)
def test_what_vllm_keeps_for_itself_is_no_parameter(name: str) -> None:
    """vLLM checks none of them, and its engine cannot read some."""
    parser = ParameterParser(PoolingParams, "embedding_request")
    assert parser.build({"dimensions": "2"}) == PoolingParams(dimensions=2)
    with pytest.raises(RequestError, match=f"embedding_request: unknown parameter '{name}'"):
        parser.build({name: {}})
