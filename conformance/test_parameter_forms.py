"""GEN: in what forms, and in which places, a request may give its sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, GrpcClient, HttpClient
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.verdicts import untested

from .base_requests import GREEDY, HOT, ONE, PROMPT, nonempty_text

#: Parameters whose value is JSON.
STRUCTURES = ("structured_outputs", "guided_decoding")


@pytest.mark.requirement("GEN-009")
@pytest.mark.parametrize(
    ("write", "numbers"),
    [
        # A seed that no floating-point number is.
        (str, {"top_p": 0.95, "top_k": 50, "seed": 2**53 + 1}),
        (str, {"top_k": -1, "presence_penalty": -1.5, "seed": 7}),
        # JSON knows one kind of number only: 50.0 is 50.
        (float, {"top_k": 50, "seed": 7}),
    ],
    ids=["text", "text-below-zero", "point"],
)
def test_numbers_may_be_written_otherwise(
    generate: Generate, write: Callable[[float], str | float], numbers: dict[str, float]
) -> None:
    numbers = {**HOT, "max_tokens": 20, **numbers}
    written = {k: v if isinstance(v, bool) else write(v) for k, v in numbers.items()}
    expect.equal(
        f"text with {json.dumps(written)}",
        generate(ONE.but(sampling=written)).text,
        generate(ONE.but(sampling=numbers)).text,
    )


@pytest.mark.requirement("GEN-009")
@pytest.mark.parametrize("n", ["1", 1.0], ids=["text", "point"])
def test_number_of_sequences_may_be_written_so(generate: Generate, n: str | float) -> None:
    """Of one, as several are GEN-019's."""
    answer = generate(ONE.but(sampling={**HOT, "n": n, "max_tokens": 4}))
    expect.equal("number of texts", len(answer.ok().data[0].values("text_output")), 1)


@pytest.mark.requirement("GEN-015")
@pytest.mark.parametrize(
    ("text", "meaning"),
    [("false", False), ("true", True), ("False", False), ("True", True)],  # as Python writes them
)
def test_booleans_may_be_strings(
    generate: Generate, known_answer: KnownAnswer, text: str, meaning: bool
) -> None:
    """Behind the story's end, ignore_eos decides whether anything follows."""
    expected = known_answer.answer("Say alpha", max_tokens=50, ignore_eos=meaning)
    request = ONE.but(
        text_input="Say alpha",
        sampling={"temperature": 0, "max_tokens": 50, "ignore_eos": text},
        returns=("num_output_tokens",),
    )
    answer = generate(request)
    expect.equal(
        f'num_output_tokens with ignore_eos="{text}"',
        answer.last("num_output_tokens"),
        expected.num_output_tokens,
    )


@pytest.mark.requirement("GEN-015")
def test_other_words_are_no_booleans(generate: Generate) -> None:
    error = generate(ONE.but(sampling={"ignore_eos": "perhaps"})).failed()
    expect.contains("error", error, "ignore_eos")


@pytest.mark.requirement("GEN-016")
def test_null_means_unset(generate: Generate) -> None:
    request = ONE.but(
        sampling={"temperature": 0, "max_tokens": 24, "stop": None, "seed": None, "top_k": None}
    )
    expect.equal("text with null parameters", generate(request).text, generate(ONE).text)


@pytest.mark.requirement("GEN-016")
def test_null_log_probabilities_are_none(generate: Generate) -> None:
    request = ONE.but(returns=("logprobs",))
    answer = generate(request.but(sampling={**GREEDY, "logprobs": None}))
    unset = generate(request).ok().data[0].outputs.get("logprobs")
    given = answer.ok().data[0].outputs.get("logprobs")
    expect.equal("logprobs with null", given and given.values, unset and unset.values)


@pytest.mark.requirement("GEN-016")
def test_null_under_the_other_name_of_a_parameter(generate: Generate) -> None:
    """Some clients send both names of a parameter and give one of them a value. Newer versions of
    vLLM know only one of the names, and a backend need not know more."""
    choice = '{"choice": ["yes", "no"]}'
    old = generate(ONE.but(sampling={**GREEDY, "guided_decoding": choice}))
    if old.error is not None and "guided_decoding" in old.error:
        untested("the structures' old name, guided_decoding, is unknown here")
    names = {"guided_decoding": None, "structured_outputs": choice}
    answer = generate(ONE.but(sampling={**GREEDY, **names}))
    expect.one_of(f"text_output ({answer.error})", answer.text, ["yes", "no"])


@pytest.mark.requirement("GEN-016")
def test_null_max_tokens_is_accepted(generate: Generate) -> None:
    """vLLM: without max_tokens the text may go on to the model's length; a stop string ends it."""
    full = nonempty_text(generate, ONE)
    stop = full[len(full) // 2 :][:2]
    request = ONE.but(sampling={"temperature": 0, "max_tokens": None, "stop": [stop]})
    expect.equal("text_output", generate(request).text, full[: full.index(stop)])


@pytest.mark.requirement("GEN-010")
def test_http_float_parameters_take_effect(triton_http: HttpClient) -> None:
    """With a temperature and a top_p close to 0 the best token is always chosen. If several are
    equally good, the seed decides."""
    near_zero = {"temperature": 0.0009765625, "top_p": 0.0009765625, "max_tokens": 24, "seed": 5}
    meant = triton_http.generate(ONE.but(sampling=near_zero)).ok().text
    parameters = {**near_zero, "exclude_input_in_output": True}
    answer = triton_http.generate(GenerateRequest(PROMPT, parameters=parameters))
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("text_output", answer.text, meant)


@pytest.mark.requirement("GEN-011")
def test_request_parameters_alone_set_the_sampling(generate: Generate) -> None:
    for count in (3, 9):
        request = GenerateRequest(
            PROMPT,
            parameters={"temperature": 0.0, "max_tokens": count, "ignore_eos": True},
            exclude_input_in_output=True,
            returns=("num_output_tokens",),
        )
        answer = generate(request)
        expect.equal("num_output_tokens", answer.last("num_output_tokens"), count)


@pytest.mark.requirement("GEN-011")
def test_request_parameters_mean_what_the_tensor_means(generate: Generate) -> None:
    """A float, without which the text would be nearly greedy, and integers."""
    hot = {"temperature": 1.9, "seed": 5, "max_tokens": 24}
    request = GenerateRequest(PROMPT, exclude_input_in_output=True)
    expect.equal(
        "text with request parameters",
        generate(request.but(parameters=hot)).text,
        generate(request.but(sampling=hot)).text,
    )
    as_text = {name: str(value) for name, value in hot.items()}
    expect.equal(
        "text with request parameters that are texts",
        generate(request.but(parameters=as_text)).text,
        generate(request.but(sampling=hot)).text,
    )


@pytest.mark.requirement("GEN-011")
def test_text_among_the_request_parameters(generate: Generate) -> None:
    full = nonempty_text(generate, ONE)
    stop = full[len(full) // 2 :][:3]
    request = ONE.but(sampling=None, parameters={**GREEDY, "stop": stop})
    expect.equal(f"text with stop={stop!r}", generate(request).text, full[: full.index(stop)])


@pytest.mark.requirement("GEN-011")
@pytest.mark.parametrize("stop", [" victor", "7", "null"], ids=["blank", "digit", "null"])
def test_text_among_the_request_parameters_is_taken_as_it_is(
    generate: Generate, known_answer: KnownAnswer, stop: str
) -> None:
    """With its white space, and not read as JSON even where it is JSON: the last two of these texts
    do not occur in the story, so they stop nothing."""
    expected = known_answer.answer("Say tango", max_tokens=64, stop=[stop])
    parameters = {"temperature": 0, "max_tokens": 64, "stop": stop}
    request = ONE.but(text_input="Say tango", sampling=None, parameters=parameters)
    expect.equal(f"text with stop={stop!r}", generate(request).text, expected.text)


# What changes the text of a hot request with a seed.
SCALARS: dict[str, Any] = {
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.2,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "repetition_penalty": 2.0,
    "min_tokens": 24,
    "ignore_eos": False,
}


@pytest.mark.requirement("GEN-011")
@pytest.mark.parametrize("name", SCALARS)
def test_scalars_among_the_request_parameters_mean_what_the_tensor_means(
    generate: Generate, name: str
) -> None:
    sampling = {**HOT, "seed": 5, "max_tokens": 24, name: SCALARS[name]}
    request = ONE.but(returns=("num_output_tokens", "finish_reason"))
    outputs = ("text_output", *request.returns)
    by_parameters, by_tensor = (
        {output: generate(asked).ok().data[0].values(output) for output in outputs}
        for asked in (
            request.but(sampling=None, parameters=sampling),
            request.but(sampling=sampling),
        )
    )
    expect.equal(f"answer with {name} as a request parameter", by_parameters, by_tensor)


@pytest.mark.requirement("GEN-011")
def test_request_parameter_of_an_outputs_name(generate: Generate) -> None:
    """`logprobs` is a sampling parameter, too."""
    request = ONE.but(sampling=None, parameters={**GREEDY, "logprobs": 2}, returns=("logprobs",))
    entries = generate(request).logprobs()
    expect.that("logprobs", entries, bool, "an entry for each token")
    for entry in entries:
        expect.between("alternatives of a token", len(entry), 2, 3)


@pytest.mark.requirement("GEN-031")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stop_token_ids", "[{4}, {5}]"),
        ("bad_words", '["bravo", "charlie"]'),
        ("logit_bias", '{{"{2}": 100}}'),
        *((name, '{{"choice": ["yes", "no"]}}') for name in STRUCTURES),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)
def test_lists_and_objects_among_the_request_parameters(
    generate: Generate, known_answer: KnownAnswer, name: str, text: str
) -> None:
    """Parameters are neither in either protocol: they are written as JSON."""
    text = text.format(*known_answer.story_ids)
    request = ONE.but(text_input="Say alpha", sampling=None)
    answer = generate(request.but(parameters={**GREEDY, name: text}))
    # Structures are JSON within JSON in the tensor, too (GEN-017); as objects they may be refused.
    in_tensor = text if name in STRUCTURES else json.loads(text)
    meant = generate(request.but(sampling={**GREEDY, name: in_tensor}))
    if name == "guided_decoding" and name in (meant.error or ""):
        untested("the structures' old name, guided_decoding, is unknown here")
    expect.different("text without the parameter", generate(ONE).text, meant.text)
    expect.equal(f"text with {name}={text!r}", answer.text, meant.text)


@pytest.mark.requirement("GEN-012")
def test_the_tensor_wins_over_request_parameters(triton_grpc: GrpcClient) -> None:
    request = GenerateRequest(
        PROMPT,
        sampling={"max_tokens": 1},
        parameters={"max_tokens": 50, "ignore_eos": True},
        returns=("num_output_tokens",),
    )
    expect.equal("num_output_tokens", triton_grpc.generate(request).last("num_output_tokens"), 1)
    # What the tensor does not mention is not taken from the parameters either.
    answer = triton_grpc.generate(request.but(parameters={"n": 2, "foo": 1})).ok()
    expect.equal("number of texts", len(answer.data[0].values("text_output")), 1)
    triton_grpc.generate(request.but(parameters={"lora_name": "x"})).ok()


@pytest.mark.requirement("GEN-012")
def test_the_empty_tensor_wins_too(generate: Generate) -> None:
    request = ONE.but(sampling={}, parameters={"max_tokens": 1}, returns=("num_output_tokens",))
    # By chance, a text may end with its first token.
    counts = [generate(request).last("num_output_tokens") for _ in range(3)]
    expect.that("num_output_tokens", max(counts), lambda tokens: tokens > 1, "more than 1")
