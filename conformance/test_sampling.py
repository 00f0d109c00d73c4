"""GEN: sampling parameters have the effect that they have in vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import Generate, HttpClient
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import not_applicable, untested

from .base_requests import GREEDY, HOT, ONE, PROMPT, nonempty_text
from .marks import UNARY_AND_STREAM

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
        # It is not nested, though it has more brackets than may be nested.
        ("Say alpha", {"stop": ["[{" * 100, "delta"]}, {"stop": ["delta"]}),
    ],
    ids=["include_stop_str_in_output", "skip_special_tokens", "min_tokens", "brackets"],
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
    """Without a penalty the first of the two allowed words always wins, with a logit of 4 to 3. A
    penalty brings it down to 2 once it has been said; only the frequency penalty counts how often.
    """
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
    """Each of several words. The story goes on with a quotation mark; where that is banned, the
    model says the first word of the story instead.

    Only signs are banned, because each is one token. If a word is several tokens when no space is
    before it, vLLM bans only that form of it.
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
    if not vllm_harness.provision.has_server_python or vllm_model.path is None:
        untested("needs the embedded runtime or an image, to run vLLM without Triton")
    asked = [
        *((prompt, GREEDY) for prompt in (PROMPT, "The capital of France is", "def main():")),
        *((PROMPT, {**GREEDY, **parameter}) for parameter in PARAMETERS_OF_ANY_MODEL),
    ]
    reference = vllm_harness.reference_texts(asked)
    for (prompt, sampling), text in zip(asked, reference, strict=True):
        answer = triton_http.generate(ONE.but(text_input=prompt, sampling=sampling))
        expect.equal(f"text_output with {json.dumps(sampling)}", answer.text, text)


@pytest.mark.requirement("GEN-008")
@UNARY_AND_STREAM
def test_what_is_not_given_has_vllms_default(
    generate: Generate, vllm_model: ModelUnderTest, stream: bool
) -> None:
    """The text is random, with a seed, so that it changes if the backend sets any of these
    parameters to a default of its own."""
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


@pytest.mark.requirement("GEN-013")
@pytest.mark.parametrize("form", ["list", "text", "second"])
def test_stop_string_ends_the_text_before_it(generate: Generate, form: str) -> None:
    """The stop string is taken from the middle of the model's own greedy text."""
    full = nonempty_text(generate, ONE)
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
