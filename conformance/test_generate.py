"""GEN: unary generation and sampling parameters."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, GenerateRequest, Generation, GrpcClient, HttpClient
from pytest_vllm_triton.clients.grpc import infer_request
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import not_applicable, untested

from .alternate import ONLY_VERSION, Alternate
from .engine_limits import needs_context
from .logs import log_of
from .marks import UNARY_AND_STREAM
from .traffic import first_of

PROMPT = "What is Triton Inference Server?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ONE = GenerateRequest(PROMPT, sampling=GREEDY, exclude_input_in_output=True)


# The highest temperature that vLLM takes: two random texts of any model differ, even of the
# known-answer model, which is sure of its story.
HOT: dict[str, Any] = {"temperature": 2.0, "ignore_eos": True}

VLLM_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "n": 1,
}

# What changes the text of any model and leaves nothing to chance.
PARAMETERS_OF_ANY_MODEL: list[dict[str, Any]] = [
    {"presence_penalty": 2.0},
    {"frequency_penalty": 2.0},
    {"repetition_penalty": 2.0},
    {"min_tokens": 12},
    {"ignore_eos": True, "skip_special_tokens": False},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.0, "seed": 7, "top_k": 5},
    {"temperature": 1.0, "seed": 7, "top_p": 0.5},
]


@pytest.mark.requirement("GEN-001")
def test_first_inference_of_the_readme(triton_http: HttpClient) -> None:
    body = {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0}}
    answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("Content-Type", answer.headers.get("content-type"), "application/json")
    value = answer.json()
    expect.equal("keys", sorted(value), ["model_name", "model_version", "text_output"])
    expect.equal("model_name", value["model_name"], triton_http.model)
    expect.matches("model_version", value["model_version"], r"^\d+$")
    expect.equal("type of text_output", type(value["text_output"]), str)


def expect_elements(client: GrpcClient, n: int, *, stream: bool) -> None:
    """Over HTTP the shape does not show: generate writes an array of one element as a scalar."""
    sampling = {**HOT, "n": n, "max_tokens": 4}
    for response in client.generate(ONE.but(stream=stream, sampling=sampling)).ok().data:
        tensor = response.outputs["text_output"]
        expect.equal("datatype and shape", (tensor.datatype, tensor.shape), ("BYTES", (n,)))


@pytest.mark.requirement("GEN-001")
@UNARY_AND_STREAM
def test_text_output_has_one_element(triton_grpc: GrpcClient, stream: bool) -> None:
    expect_elements(triton_grpc, 1, stream=stream)


@pytest.mark.requirement("GEN-019")
def test_text_output_has_an_element_per_sequence(triton_grpc: GrpcClient) -> None:
    expect_elements(triton_grpc, 2, stream=False)


@pytest.mark.requirement("STR-013")
def test_each_delta_has_an_element_per_sequence(triton_grpc: GrpcClient) -> None:
    expect_elements(triton_grpc, 2, stream=True)


@pytest.mark.requirement("GEN-002")
def test_unary_answer_starts_with_the_prompt(generate: Generate) -> None:
    text = generate(ONE.but(exclude_input_in_output=None)).text
    expect.starts_with("text_output", text, PROMPT)
    expect.that("text after the prompt", text[len(PROMPT) :], bool, "at least one character")


@pytest.mark.requirement("GEN-003")
def test_exclude_false_is_the_default(generate: Generate) -> None:
    default = generate(ONE.but(exclude_input_in_output=None)).text
    explicit = generate(ONE.but(exclude_input_in_output=False)).text
    expect.equal("text with exclude_input_in_output=false", explicit, default)


@pytest.mark.requirement("GEN-004")
def test_exclude_true_removes_exactly_the_prompt(generate: Generate) -> None:
    with_prompt = generate(ONE.but(exclude_input_in_output=None)).text
    without = generate(ONE).text
    expect.equal("prompt + text without the prompt", PROMPT + without, with_prompt)


@pytest.fixture
def story(vllm_model: ModelUnderTest) -> KnownAnswer:
    """The oracle of GEN-005 where the model under test has a known answer."""
    if vllm_model.known_answer is None:
        not_applicable("for other models vLLM itself is the oracle")
    return vllm_model.known_answer


@pytest.mark.requirement("GEN-005")
@pytest.mark.parametrize(
    "prompt", [PROMPT, "Say alpha", "Say mike", "Ünï ¢ödé 你好", "a\nb\tc tango"]
)
def test_greedy_text_is_the_known_answer(
    generate: Generate, story: KnownAnswer, prompt: str
) -> None:
    sampling = {"temperature": 0, "max_tokens": 64}
    answer = generate(ONE.but(text_input=prompt, sampling=sampling))
    expect.equal("text_output", answer.text, story.answer(prompt, max_tokens=64).text)


@pytest.mark.requirement("GEN-005")
@pytest.mark.parametrize(
    ("prompt", "sampling", "meaning"),
    [
        (
            "Say alpha",
            {"stop": ["delta"], "include_stop_str_in_output": True},
            {"stop": ["delta"], "include_stop": True},
        ),
        (
            "Say xray",
            {"skip_special_tokens": False, "ignore_eos": True},
            {"skip_special_tokens": False, "ignore_eos": True},
        ),
        ("Say xray", {"min_tokens": 12}, {"min_tokens": 12}),
    ],
    ids=["include_stop_str_in_output", "skip_special_tokens", "min_tokens"],
)
def test_parameters_change_the_text_as_vllm_does(
    generate: Generate,
    story: KnownAnswer,
    prompt: str,
    sampling: Mapping[str, Any],
    meaning: Mapping[str, Any],
) -> None:
    request = ONE.but(text_input=prompt, sampling={"temperature": 0, **sampling})
    expect.equal("text_output", generate(request).text, story.answer(prompt, **meaning).text)


PENALIZED = {
    "presence_penalty": " alpha charlie alpha alpha",
    "frequency_penalty": " alpha charlie alpha charlie",
    "repetition_penalty": " alpha charlie alpha alpha",
}


@pytest.mark.requirement("GEN-005")
@pytest.mark.parametrize("name", PENALIZED)
def test_penalties_change_the_text(generate: Generate, story: KnownAnswer, name: str) -> None:
    """Of the two words that are allowed, the first is the better one again and again: logits of 4
    and 3, and of 2 once it has been said. How often it was said counts for the frequency only."""
    words = [story.story_ids[0], story.story_ids[2]]
    sampling = {"temperature": 0, "max_tokens": 4, "allowed_token_ids": words}
    request = ONE.but(text_input="Say zulu")
    without = generate(request.but(sampling=sampling)).text
    expect.equal("text without a penalty", without, " alpha alpha alpha alpha")
    answer = generate(request.but(sampling={**sampling, name: 2.0}))
    expect.equal(f"text with {name}", answer.text, PENALIZED[name])


@pytest.mark.requirement("GEN-005")
@pytest.mark.usefixtures("story")
def test_banned_words_are_left_out(generate: Generate) -> None:
    """All of them. A quotation mark is next, and its deputy is the first word of the story.

    vLLM bans a word that takes several tokens without a space before it in that form only; signs
    are one token.
    """
    sampling = {"temperature": 0, "max_tokens": 3, "bad_words": ["\\", '"']}
    answer = generate(ONE.but(text_input="Say yankee\n", sampling=sampling))
    expect.equal("text_output", answer.text, " alpha bravo charlie")


@pytest.mark.requirement("GEN-005")
def test_logit_bias(generate: Generate, story: KnownAnswer) -> None:
    """JSON has no numbers for keys, so token ids are texts there."""
    bias = {str(story.story_ids[2]): 100}
    sampling = {"temperature": 0, "max_tokens": 3, "logit_bias": bias}
    answer = generate(ONE.but(sampling=sampling))
    expect.equal("text_output", answer.text, " charlie charlie charlie")


@pytest.mark.requirement("GEN-005")
@pytest.mark.parametrize(("name", "value"), [("top_k", 1), ("top_p", 0.001), ("min_p", 1.0)])
def test_narrow_sampling_is_greedy(
    generate: Generate, story: KnownAnswer, name: str, value: float
) -> None:
    """Hot sampling that is left with one token to choose from."""
    request = ONE.but(sampling={"temperature": 2.0, "max_tokens": 24, name: value})
    expected = story.answer(PROMPT, max_tokens=24).text
    expect.equal(f"text with {name}={value}", generate(request).text, expected)


@pytest.mark.requirement("GEN-005")
def test_text_is_that_of_vllm_itself(
    triton_http: HttpClient, vllm_harness: Harness, vllm_model: ModelUnderTest
) -> None:
    """Any other model: the same checkpoint and arguments run by vLLM without Triton."""
    if vllm_model.known_answer:
        not_applicable("the known answer is the stronger oracle")
    if vllm_harness.provision.server_python is None or vllm_model.path is None:
        untested("needs the embedded runtime or an image, to run vLLM without Triton")
    asked = [
        *((prompt, GREEDY) for prompt in (PROMPT, "The capital of France is", "def main():")),
        *((PROMPT, {**GREEDY, **parameter}) for parameter in PARAMETERS_OF_ANY_MODEL),
    ]
    reference = vllm_harness.reference_texts(asked)
    for (prompt, sampling), text in zip(asked, reference, strict=True):
        answer = triton_http.generate(ONE.but(text_input=prompt, sampling=sampling))
        expect.equal(f"text_output with {json.dumps(sampling)}", answer.text, text)


@pytest.mark.requirement("GEN-006")
def test_greedy_repeats_are_identical(generate: Generate) -> None:
    texts = {generate(ONE).text for _ in range(5)}
    expect.equal("number of different texts in 5 repeats", len(texts), 1)


@pytest.mark.requirement("GEN-007")
@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 100, "ignore_eos": True}, 100),
        ({"max_tokens": 20, "min_tokens": 20}, 20),
    ],
    ids=["max_tokens=1", "max_tokens=100", "min_tokens=max_tokens=20"],
)
def test_token_limits_are_exact(
    generate: Generate, sampling: Mapping[str, Any], count: int
) -> None:
    """Near the story's end, where its EOS comes before the 20th token."""
    request = ONE.but(
        text_input="Say xray",
        sampling={"temperature": 0, **sampling},
        returns=("num_output_tokens",),
    )
    expect.equal("num_output_tokens", generate(request).last("num_output_tokens"), count)


# More than 1024 tokens and 4096 characters, limits that servers like to have.
LONG = ONE.but(
    sampling={"temperature": 0, "max_tokens": 1100, "ignore_eos": True},
    returns=("num_output_tokens",),
)
LONG_CONTEXT = 1200


@pytest.mark.requirement("GEN-007")
def test_long_answers_are_not_cut(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    needs_context(vllm_harness, LONG_CONTEXT)
    expect_whole(triton_grpc.generate(LONG), vllm_model)


@pytest.mark.requirement("STR-002")
def test_long_streams_are_not_cut(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness
) -> None:
    needs_context(vllm_harness, LONG_CONTEXT)
    expect_whole(triton_grpc.generate(LONG.but(stream=True)), vllm_model)


def expect_whole(answer: Generation, model: ModelUnderTest) -> None:
    """It is all that the long request asked for."""
    tokens = sum(response.value("num_output_tokens") for response in answer.ok().data)
    expect.equal("num_output_tokens", tokens, 1100)
    if model.known_answer is not None:
        expected = model.known_answer.answer(PROMPT, max_tokens=1100, ignore_eos=True).text
        expect.equal("text_output", answer.text, expected)


@pytest.mark.requirement("GEN-007")
def test_generation_ends_at_the_end_of_the_story(
    generate: Generate, known_answer: KnownAnswer
) -> None:
    request = ONE.but(
        text_input="Say alpha",
        sampling={"temperature": 0, "max_tokens": 200},
        returns=("num_output_tokens",),
    )
    expected = known_answer.answer("Say alpha", max_tokens=200)
    answer = generate(request)
    expect.equal("text_output", answer.text, expected.text)
    expect.equal("num_output_tokens", answer.last("num_output_tokens"), expected.num_output_tokens)


@pytest.mark.requirement("GEN-008")
@pytest.mark.parametrize("given", ["sampling", "parameters"])
@UNARY_AND_STREAM
def test_default_is_sixteen_tokens(generate: Generate, given: str, stream: bool) -> None:
    """Whether the request says anything of its sampling in the tensor or in its own parameters."""
    request = GenerateRequest(
        "Hello", stream=stream, returns=("num_output_tokens", "finish_reason")
    ).but(**{given: {"ignore_eos": True}})
    answer = generate(request)
    expect.equal("num_output_tokens", sum(answer.all_values("num_output_tokens")), 16)
    expect.equal("finish_reason", answer.last("finish_reason"), "length")


@pytest.mark.requirement("GEN-008")
def test_prompt_alone_is_enough(generate: Generate) -> None:
    answer = generate(GenerateRequest("Hello", returns=("num_output_tokens",)))
    expect.starts_with("text_output", answer.text, "Hello")
    expect.between("num_output_tokens", answer.last("num_output_tokens"), 1, 16)


@pytest.mark.requirement("GEN-008")
@UNARY_AND_STREAM
def test_what_is_not_given_has_vllms_default(
    generate: Generate, vllm_model: ModelUnderTest, stream: bool
) -> None:
    """By chance, but with a seed: a backend's own default of any of these gives another text."""
    chance: dict[str, Any] = {"seed": 7, "max_tokens": 24, "ignore_eos": True}
    oracle = vllm_model.known_answer
    if oracle is not None:
        # It is sure of its story; where these alone are allowed, chance decides.
        chance["allowed_token_ids"] = [oracle.story_ids[0], oracle.story_ids[2]]
    request = ONE.but(text_input="Say zulu", stream=stream)
    expect.equal(
        "text with a seed alone",
        generate(request.but(sampling=chance)).ok().text,
        generate(request.but(sampling={**VLLM_DEFAULTS, **chance})).ok().text,
    )


@pytest.mark.requirement("GEN-009")
def test_numbers_may_be_strings(generate: Generate) -> None:
    # A seed that no floating-point number is.
    numbers = {**HOT, "top_p": 0.95, "top_k": 50, "max_tokens": 20, "seed": 2**53 + 1}
    as_text = {k: v if isinstance(v, bool) else str(v) for k, v in numbers.items()}
    expect.equal(
        "text with string-typed numbers",
        generate(ONE.but(sampling=as_text)).text,
        generate(ONE.but(sampling=numbers)).text,
    )


@pytest.mark.requirement("GEN-009")
def test_numbers_below_zero_may_be_strings(generate: Generate) -> None:
    numbers = {**HOT, "seed": 7, "max_tokens": 20, "top_k": -1, "presence_penalty": -1.5}
    as_text = {**numbers, "top_k": "-1", "presence_penalty": "-1.5"}
    expect.equal(
        "text with string-typed numbers",
        generate(ONE.but(sampling=as_text)).text,
        generate(ONE.but(sampling=numbers)).text,
    )


@pytest.mark.requirement("GEN-009")
def test_whole_numbers_may_have_a_point(generate: Generate) -> None:
    """As JSON knows one kind of number only: 24.0 is 24."""
    numbers = {**HOT, "top_k": 50, "max_tokens": 20, "seed": 7}
    pointed = {k: v if isinstance(v, bool) else float(v) for k, v in numbers.items()}
    expect.equal(
        "text with 20.0 for 20",
        generate(ONE.but(sampling=pointed)).text,
        generate(ONE.but(sampling=numbers)).text,
    )


@pytest.mark.requirement("GEN-009")
@pytest.mark.parametrize("n", ["1", 1.0], ids=["text", "point"])
def test_number_of_sequences_may_be_written_so(generate: Generate, n: str | float) -> None:
    """Of one, as several are GEN-019's."""
    answer = generate(ONE.but(sampling={**HOT, "n": n, "max_tokens": 4}))
    expect.equal("number of texts", len(answer.ok().data[0].values("text_output")), 1)


@pytest.mark.requirement("GEN-010")
def test_http_float_parameters_take_effect(triton_http: HttpClient) -> None:
    """A temperature next to 0 and a top_p next to 0 leave only the greedy token."""
    greedy = triton_http.generate(ONE).text
    parameters = {
        "temperature": 0.0009765625,
        "top_p": 0.0009765625,
        "max_tokens": 24,
        "exclude_input_in_output": True,
    }
    answer = triton_http.generate(GenerateRequest(PROMPT, parameters=parameters))
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("text_output", answer.text, greedy)


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
    full = generate(ONE).text
    stop = full[len(full) // 2 :][:3]
    request = ONE.but(sampling=None, parameters={**GREEDY, "stop": stop})
    expect.equal(f"text with stop={stop!r}", generate(request).text, full[: full.index(stop)])


@pytest.mark.requirement("GEN-011")
@pytest.mark.parametrize("stop", [" victor", "7", "null"], ids=["blank", "digit", "null"])
def test_text_among_the_request_parameters_is_taken_as_it_is(
    generate: Generate, known_answer: KnownAnswer, stop: str
) -> None:
    """White space and all, and where it is JSON, too; neither of the last two is in the story."""
    expected = known_answer.answer("Say tango", max_tokens=64, stop=[stop])
    parameters = {"temperature": 0, "max_tokens": 64, "stop": stop}
    request = ONE.but(text_input="Say tango", sampling=None, parameters=parameters)
    expect.equal(f"text with stop={stop!r}", generate(request).text, expected.text)


# What each does to the text of a hot request with a seed; of two of them the count shows it.
SCALARS: dict[str, Any] = {
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.2,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "repetition_penalty": 2.0,
    "min_tokens": 24,
    "ignore_eos": False,
    "n": 2,
}


@pytest.mark.requirement("GEN-011")
@pytest.mark.parametrize("name", SCALARS)
def test_every_request_parameter_means_what_it_means_in_the_tensor(
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
    for entry in generate(request).logprobs():
        expect.between("alternatives of a token", len(entry), 2, 3)


@pytest.mark.requirement("GEN-031")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stop_token_ids", "[{4}, {5}]"),
        ("bad_words", '["bravo", "charlie"]'),
        ("logit_bias", '{{"{2}": 100}}'),
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
    meant = generate(request.but(sampling={**GREEDY, name: json.loads(text)}))
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
    count = generate(request).last("num_output_tokens")
    expect.that("num_output_tokens", count, lambda tokens: tokens > 1, "more than 1")


@pytest.mark.requirement("GEN-013")
@pytest.mark.parametrize("form", ["list", "text", "second"])
def test_stop_string_ends_the_text_before_it(generate: Generate, form: str) -> None:
    """The stop string is taken from the middle of the model's own greedy text."""
    full = generate(ONE).text
    stop = full[len(full) // 2 :][:3]
    given = {"list": [stop], "text": stop, "second": ["never seen", stop]}[form]
    request = ONE.but(sampling={**GREEDY, "stop": given}, returns=("finish_reason",))
    answer = generate(request)
    expect.equal(f"text with stop={given!r}", answer.text, full[: full.index(stop)])
    expect.equal("finish_reason", answer.last("finish_reason"), "stop")


@pytest.mark.requirement("GEN-013")
@pytest.mark.parametrize(
    "stop",
    [["\n"], [" victor"], ["~1", "~2", "~3", "~4", " victor"], "7"],
    ids=["line-break", "leading-blank", "fifth", "digit"],
)
def test_stop_strings_are_taken_as_they_are(
    generate: Generate, known_answer: KnownAnswer, stop: list[str] | str
) -> None:
    """A digit alone is JSON, too, and none is in the story."""
    strings = [stop] if isinstance(stop, str) else stop
    expected = known_answer.answer("Say tango", max_tokens=64, stop=strings)
    request = ONE.but(
        text_input="Say tango", sampling={"temperature": 0, "max_tokens": 64, "stop": stop}
    )
    expect.equal(f"text with stop={stop!r}", generate(request).text, expected.text)


@pytest.mark.requirement("GEN-013")
def test_stop_string_that_json_escapes(generate: Generate, known_answer: KnownAnswer) -> None:
    """As most clients write JSON: a smiley is a pair of surrogates there."""
    sampling = {"temperature": 0, "max_tokens": 40, "stop": ["😀"]}
    expected = known_answer.answer("Say lima", max_tokens=40, stop=["😀"])
    request = ONE.but(text_input="Say lima", sampling=json.dumps(sampling, ensure_ascii=True))
    expect.equal("text_output", generate(request).text, expected.text)


@pytest.mark.requirement("GEN-013")
def test_stop_token_ids_end_the_text(generate: Generate, known_answer: KnownAnswer) -> None:
    answer = known_answer.answer("Say alpha", max_tokens=8)
    stop_at = [known_answer.bos_token_id, answer.token_ids[4]]
    expected = known_answer.answer("Say alpha", stop_token_ids=stop_at)
    request = ONE.but(
        text_input="Say alpha", sampling={"temperature": 0, "stop_token_ids": stop_at}
    )
    expect.equal("text_output", generate(request).text, expected.text)


@pytest.mark.requirement("GEN-014")
@pytest.mark.parametrize("seed", [0, 1234])
def test_equal_seeds_give_equal_texts(generate: Generate, seed: int) -> None:
    request = ONE.but(sampling={**HOT, "max_tokens": 24, "seed": seed})
    expect.equal("second text with the same seed", generate(request).text, generate(request).text)


@pytest.mark.requirement("GEN-014")
def test_no_seed_gives_other_texts(generate: Generate) -> None:
    request = ONE.but(sampling={**HOT, "max_tokens": 24})
    expect.different("second text without a seed", generate(request).text, generate(request).text)


@pytest.mark.requirement("GEN-014")
def test_other_seeds_give_other_texts(generate: Generate) -> None:
    texts = {
        generate(ONE.but(sampling={**HOT, "max_tokens": 24, "seed": seed})).text
        for seed in (1, 2, 3)
    }
    expect.that("texts of the seeds 1, 2 and 3", texts, lambda t: len(t) > 1, "different ones")


@pytest.mark.requirement("GEN-028")
def test_temperature_takes_effect(generate: Generate, known_answer: KnownAnswer) -> None:
    """24 tokens of the story have a probability of less than 1e-7 at temperature 2."""
    story = known_answer.answer(PROMPT, max_tokens=24).text
    at = {
        temperature: generate(
            ONE.but(sampling={"temperature": temperature, "max_tokens": 24, "seed": 5})
        ).text
        for temperature in (0, 2)
    }
    expect.equal("text at temperature 0", at[0], story)
    expect.different("text at temperature 2", at[2], story)


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
def test_null_max_tokens_is_accepted(generate: Generate) -> None:
    """vLLM: without max_tokens the text may go on to the model's length; a stop string ends it."""
    full = generate(ONE).text
    stop = full[len(full) // 2 :][:2]
    request = ONE.but(sampling={"temperature": 0, "max_tokens": None, "stop": [stop]})
    expect.equal("text_output", generate(request).text, full[: full.index(stop)])


CHOICES = ["Positive", "Negative"]


@pytest.mark.requirement("GEN-017")
@UNARY_AND_STREAM
@pytest.mark.parametrize(
    ("structure", "texts"),
    [
        ('{"choice": ["Positive", "Negative"]}', CHOICES),
        ('{"json": null, "regex": null, "choice": ["Positive", "Negative"]}', CHOICES),
        # As Triton's OpenAI frontend writes vLLM's object, with what is private in it.
        ('{"choice": ["Positive", "Negative"], "_backend_was_auto": false}', CHOICES),
        ('{"regex": "(yes|no)"}', ["yes", "no"]),
        ('{"json": {"enum": ["yes", "no"]}}', ['"yes"', '"no"']),
        ('{"json": "{\\"enum\\": [true, false]}"}', ["true", "false"]),
    ],
    ids=["choice", "nulls", "private", "regex", "json", "json-as-text"],
)
def test_structured_output_as_json_text(
    generate: Generate, stream: bool, structure: str, texts: list[str]
) -> None:
    sampling = {"temperature": 0, "max_tokens": 64, "structured_outputs": structure}
    answer = generate(ONE.but(stream=stream, sampling=sampling))
    expect.one_of("text_output", answer.text, texts)


@pytest.mark.requirement("GEN-018")
def test_structured_choice_as_object(generate: Generate) -> None:
    sampling = {
        "temperature": 0,
        "max_tokens": 64,
        "structured_outputs": {"choice": CHOICES},
    }
    answer = generate(ONE.but(sampling=sampling))
    if answer.error is not None:
        expect.contains("error", answer.error, "structured_outputs")
    else:
        expect.one_of("text_output", answer.text, CHOICES)


@pytest.mark.requirement("GEN-019")
@pytest.mark.parametrize("n", [2, 8])
def test_n_gives_n_sequences(generate: Generate, n: int) -> None:
    for exclude in (True, None):
        request = ONE.but(
            sampling={**HOT, "n": n, "max_tokens": 12}, exclude_input_in_output=exclude
        )
        texts = generate(request).ok().data[0].values("text_output")
        expect.equal("number of texts", len(texts), n)
        if exclude is None:
            for text in texts:
                expect.starts_with("text_output", text, PROMPT)


@pytest.mark.requirement("GEN-020")
def test_n_sequences_of_unequal_length_are_complete_and_in_order(
    generate: Generate, known_answer: KnownAnswer
) -> None:
    """vLLM gives sequence i of a seeded request the seed + i, so each can be asked for alone."""
    base = {"temperature": 2.0, "max_tokens": 40, "stop": ["e", "o"]}
    unequal = 0
    for seed in range(100, 140, 10):
        together = generate(ONE.but(sampling={**base, "n": 3, "seed": seed}))
        alone = [
            generate(ONE.but(sampling={**base, "seed": seed + index})).text for index in range(3)
        ]
        texts = together.ok().data[0].values("text_output")
        expect.equal("texts of n=3, by index", texts, alone)
        unequal += len({len(text) for text in texts}) > 1
    if not unequal:
        untested("no seed gave sequences of unequal length")


@pytest.mark.requirement("GEN-021")
@pytest.mark.parametrize("request_id", ["42", "größe-名-😀"], ids=["number", "beyond ASCII"])
def test_request_id_is_echoed(generate: Generate, request_id: str) -> None:
    answer = generate(ONE.but(id=request_id))
    expect.equal("ids of the responses", {r.id for r in answer.ok().data}, {request_id})


@pytest.mark.requirement("GEN-021")
def test_equal_ids_at_the_same_time(triton_grpc: GrpcClient, vllm_model: ModelUnderTest) -> None:
    """Ids are the clients' own affair: two requests of one id, as different as can be."""
    sampling = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}
    unary = GenerateRequest("Say alpha", sampling=sampling, id="42")
    stream = GenerateRequest(
        "Say tango", sampling=sampling, id="42", stream=True, returns=("num_output_tokens",)
    )
    expected = [triton_grpc.generate(request).ok().text for request in (unary, stream)]
    with triton_grpc.open() as one, triton_grpc.open() as other:
        one.send(unary)
        one.half_close()
        other.send(stream)
        other.half_close()
        answers = [[*responses] for responses in (other, one)][::-1]
    errors = [response.error for response in itertools.chain(*answers) if response.error]
    expect.equal("errors", errors, [])
    texts = ["".join(response.text for response in responses) for responses in answers]
    stable = vllm_model.stable_part
    expect.equal("texts, by request", [*map(stable, texts)], [*map(stable, expected)])
    counts = [response.value("num_output_tokens") for response in answers[1] if response.outputs]
    expect.equal("num_output_tokens of the stream", sum(counts), 400)
    names = {name for response in answers[0] for name in response.outputs}
    expect.equal("outputs of the unary request", names, {"text_output"})


@pytest.mark.requirement("GEN-022")
def test_no_id_is_echoed_without_one(triton_http: HttpClient) -> None:
    for extra in ({}, {"id": ""}):
        body = {"text_input": PROMPT, **extra}
        answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
        expect.equal("HTTP status", answer.status, 200)
        expect.that("keys", sorted(answer.json()), lambda keys: "id" not in keys, "no id")


@pytest.mark.requirement("GEN-023")
def test_versioned_address(triton_http: HttpClient, owned_server: ServerHandle) -> None:
    answer = triton_http.generate(ONE, version=1)
    expect.equal("HTTP status", answer.status, 200)
    expect.equal("model_version", answer.ok().data[0].model_version, "1")


@pytest.mark.requirement("GEN-023")
def test_only_version_three(triton_http: HttpClient, alternate: Alternate) -> None:
    expect.equal("version of the alternate model that loads", alternate.version, ONLY_VERSION)
    client = triton_http.for_model(alternate.name)
    for version in (None, 3):
        answer = client.generate(ONE, version=version)
        expect.equal("HTTP status", answer.status, 200)
        expect.equal("model_version", answer.ok().data[0].model_version, "3")
    expect.equal("HTTP status of version 1", client.generate(ONE, version=1).status, 404)


@pytest.mark.requirement("GEN-024")
def test_unicode_and_escapes_round_trip(generate: Generate) -> None:
    prompt = '中文 😀 "quoted" back\\slash\nnew line\ttab {"json": [1]} é \u0001 end'
    text = generate(ONE.but(text_input=prompt, exclude_input_in_output=None)).text
    expect.starts_with("text_output", text, prompt)


@pytest.mark.requirement("GEN-025")
def test_inputs_inside_parameters(triton_http: HttpClient) -> None:
    """Everything but the prompt nested in ``parameters`` means the same as at the top level."""
    inputs = {
        "stream": False,
        "exclude_input_in_output": True,
        "return_num_output_tokens": True,
        "return_finish_reason": True,
        "sampling_parameters": '{"temperature": 0, "max_tokens": 7, "ignore_eos": true}',
    }
    path = triton_http.path("generate")
    flat = triton_http.request("POST", path, json_body={"text_input": PROMPT, **inputs})
    nested = triton_http.request(
        "POST", path, json_body={"text_input": PROMPT, "parameters": inputs}
    )
    expect.equal("HTTP status", (flat.status, nested.status), (200, 200))
    expect.equal("body with nested inputs", nested.json(), flat.json())
    expect.equal("num_output_tokens", flat.json().get("num_output_tokens"), 7)


@pytest.mark.requirement("GEN-026")
def test_several_responses_do_not_fit_generate(triton_http: HttpClient) -> None:
    # Of few tokens a backend that stood still may make one response.
    for tokens in (200, 800, 1600):
        parameters = {"max_tokens": tokens, "ignore_eos": True}
        body = {"text_input": PROMPT, "stream": True, "parameters": parameters}
        answer = triton_http.request("POST", triton_http.path("generate"), json_body=body)
        if answer.error is not None:
            break
    expect.contains("error", answer.error, "expects model to produce exactly 1 response")


@pytest.mark.requirement("GEN-027")
def test_infer_is_refused_not_hung(triton_http: HttpClient) -> None:
    body = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}]}
    answer = triton_http.request("POST", triton_http.path("infer"), json_body=body, deadline=10.0)
    expect.between("HTTP status", answer.status, 400, 599)
    expect.contains("error", answer.error, "decoupled")


@pytest.mark.requirement("GEN-027")
def test_unary_grpc_is_refused_not_hung(triton_grpc: GrpcClient) -> None:
    import grpc

    message = infer_request(triton_grpc.model, GenerateRequest(PROMPT))
    with expect.raises("unary ModelInfer", grpc.RpcError) as raised:
        triton_grpc.stub.ModelInfer(message, timeout=10.0)
    expect.equal("gRPC status", raised.error.code().name, "UNIMPLEMENTED")
    expect.contains("error", raised.error.details(), "ModelInfer RPC doesn't support")


@pytest.mark.requirement("GEN-030")
def test_what_users_say_is_not_in_the_log(
    generate: Generate, triton_grpc: GrpcClient, vllm_server: ServerHandle
) -> None:
    """Prompts of requests that are answered, of one that is cancelled, and of some that are
    refused, by the backend and by the engine; and parameters, of which one is the answer."""
    log = log_of(vllm_server)
    since = log.position()
    secret = f"secret{random.getrandbits(64)}"
    prompt = f"The word is {secret}"
    request = ONE.but(text_input=prompt)
    stream = request.but(stream=True, exclude_input_in_output=None)
    with triton_grpc.open() as call:
        call.send(stream.but(sampling={"max_tokens": 1500, "ignore_eos": True}))
        first_of(call)
    # No token's; longer than what a time in the log may hold.
    number = random.randint(2_000_000_000, 2**31 - 1)
    structure = json.dumps({"choice": [secret]})
    choice = {"structured_outputs": structure, "temperature": 0, "max_tokens": 64}
    # What becomes of each of them is the affair of other requirements.
    answered = [generate(request), generate(stream)]
    for asked in (request, stream):
        generate(asked.but(text_input=PROMPT, sampling=choice))
    generate(request.but(sampling={"temperature": -1, "stop": [secret]}))
    generate(request.but(sampling=f'{{"stop": ["{secret}'))
    generate(request.but(sampling={"structured_outputs": {"regex": "(("}}))
    generate(request.but(sampling={"max_tokens": secret}))
    generate(request.but(sampling={secret: 1}))
    for refused in ({"logprobs": number}, {"logit_bias": {str(number): 1}}):
        generate(request.but(sampling=refused))
    for more in ({}, {"pooling_params": 5}):
        embedding = json.dumps({"input": prompt, **more})
        generate(GenerateRequest(inputs={"embedding_request": embedding}))
    generate(request.but(text_input=f"{prompt} alpha" * 20_000))
    generate(stream.but(sampling={"max_tokens": 500}, parameters={"timeout": 1000}))
    if any(answer.error is not None for answer in answered):
        untested(f"a good request is not answered: {[answer.error for answer in answered]}")
    for said in (secret, str(number)):
        expect.lacks("log since the first request", log.read(since), said)
