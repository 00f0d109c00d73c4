"""What holds for every input: inputs that Hypothesis makes up, on the shared server.

The same inputs in every run, so that a gate does not depend on luck; ``--conformance-examples``
makes more of them. Of a violation the simplest input that shows it is reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, GrpcClient, HttpClient
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .engine_limits import needs_context
from .traffic import at_once, expect_told_alike
from .waits import ANSWER_SECONDS

Clients = dict[str, HttpClient | GrpcClient]
Property = Callable[..., None]

TOKENS = 8
# Of the longest prompt and its answer. Of the known-answer model each byte may be a token.
ROOM, OTHER_ROOM = 1600, 1000
STORY = " alpha bravo charlie delta"

PROTOCOLS = st.sampled_from(["http", "grpc"])
# Every character that UTF-8 can carry.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = (
    *("alpha", "Tango", "</s>", "<s>", "你好", "e\u0301", "\r\n", "\t", '"', "\\"),
    # One sign of three characters, joined by two that show nothing.
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
)
WORDS = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
LONG = st.tuples(TEXTS, st.integers(20, 60)).map(lambda pair: (pair[0] or "a") * pair[1])
PROMPTS = st.one_of(TEXTS, WORDS, LONG.map(lambda text: text[:400])).filter(bool)

# Parameters whose effect shows in the text, with values that vLLM takes.
SAMPLING = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 24)},
    optional={
        "ignore_eos": st.booleans(),
        "stop": st.lists(st.sampled_from(["e", "ta", " charlie", "o f", "👩"]), max_size=2),
        "include_stop_str_in_output": st.booleans(),
        "min_tokens": st.integers(0, 1),
        "skip_special_tokens": st.booleans(),
        "bad_words": st.sampled_from([[], ["😀"], ["e", "é"]]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "top_p": st.sampled_from([0.1, 1.0]),
        "top_k": st.sampled_from([-1, 1, 5]),
        "logprobs": st.integers(0, 2),
        "frequency_penalty": st.sampled_from([-1.0, 1.5]),
        "min_p": st.sampled_from([0.0, 0.2]),
        # Any model has these tokens: of the known-answer model they are single bytes.
        "stop_token_ids": st.sampled_from([[], [100], [101, 110]]),
        "logit_bias": st.sampled_from([{}, {"100": 100}, {"101": 20.5, "110": -5}]),
    },
)
# With a seed the sampled text of a request is always the same.
CHANCE = st.one_of(
    st.just({"temperature": 0}),
    st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.7, 2.0]), "seed": st.integers(0, 2**31 - 1)},
        optional={"n": st.integers(1, 3)},
    ),
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["stop", "n", "seed"]), values, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    (
        *("temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "seed", "logprobs"),
        *("logit_bias", "bad_words", "allowed_token_ids", "structured_outputs", "lora_name"),
        *("repetition_penalty", "presence_penalty", "prompt_logprobs", "priority"),
    )
)
ODD = ("[" * 5000, '{"stop": ["\\ud800"]}', '{"seed": 1, "seed": 2}', '{"n": 1e400}', "NaN")


def is_cheap(sampling: Any) -> bool:
    """Whether it does not make the engine generate for long, with a number of sequences or tokens
    that is large and yet one that vLLM accepts."""
    if not isinstance(sampling, dict):
        return True
    n, tokens = (_number(sampling.get(name, 1)) for name in ("n", "max_tokens"))
    return not 8 < n <= 16384 and not tokens > 64


def _number(value: Any) -> float:
    """What a backend may take the value for; null: no limit."""
    try:
        return math.inf if value is None else float(value)
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        return math.inf


BROKEN = st.one_of(
    TEXTS,
    JSON.filter(is_cheap).map(json.dumps),
    st.tuples(st.dictionaries(NAMES, JSON, min_size=1, max_size=2), st.just({"max_tokens": 4})).map(
        lambda pair: json.dumps({**pair[0], **pair[1]})
    ),
    JSON.map(lambda value: {"max_tokens": value}).filter(is_cheap).map(json.dumps),
    st.sampled_from(ODD),
)


@pytest.fixture
def clients(triton_http: HttpClient, triton_grpc: GrpcClient) -> Clients:
    return {"http": triton_http, "grpc": triton_grpc}


@pytest.fixture
def for_all(vllm_harness: Harness) -> Callable[[Property], None]:
    """Run a property on its generated inputs."""
    chosen = settings(
        max_examples=vllm_harness.provision.settings.examples,
        derandomize=True,
        database=None,
        deadline=None,
        # One violation at a time: a group of exceptions would be no `Violation`.
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    return lambda holds: check(chosen(holds))


def check(holds: Property) -> None:
    """Run the property. A violation counts even if it does not occur again with the same input.

    Hypothesis calls that flaky and raises a group of exceptions, which the report would show as
    ERROR; so the violation in the group is raised instead.
    """
    try:
        holds()
    except FlakyFailure as group:
        seen = [error for error in group.exceptions if isinstance(error, expect.Violation)]
        if not seen:
            raise
        raise seen[0] from None


@pytest.mark.requirement("GEN-029")
def test_any_text_is_a_prompt(
    clients: Clients,
    vllm_model: ModelUnderTest,
    vllm_harness: Harness,
    for_all: Callable[[Property], None],
) -> None:
    """Its tokens are counted too: the echo does not show what the engine was given."""
    oracle, tokenizer = vllm_model.known_answer, vllm_model.tokenizer
    needs_context(vllm_harness, ROOM if oracle else OTHER_ROOM)

    # What a careless backend strips: a byte order mark, or white space at the beginning or the end.
    @example(prompt="\ufeffSay alpha", protocol="grpc")
    @example(prompt="\n\n Say\r\nalpha", protocol="grpc")
    @example(prompt=" Say alpha \n", protocol="http")
    # What decoders write for bytes that are no text is a character like others.
    @example(prompt="Say \ufffd alpha", protocol="grpc")
    # Long, but not too long for other models, in whose vocabulary each word is several tokens.
    @example(prompt=" lima" * (1500 if oracle else 100), protocol="http")
    @given(prompt=PROMPTS, protocol=PROTOCOLS)
    def is_answered(prompt: str, protocol: str) -> None:
        sampling = {"temperature": 0, "max_tokens": TOKENS}
        request = GenerateRequest(prompt, sampling=sampling, returns=("num_input_tokens",))
        answer = clients[protocol].generate(request).ok()
        if oracle is None or tokenizer is None:
            expect.starts_with("text_output", answer.text, prompt)
        else:
            told = oracle.answer(prompt, max_tokens=TOKENS).text
            expect.equal("text_output", answer.text, prompt + told)
            tokens = len(tokenizer.encode(prompt).ids)
            expect.equal("num_input_tokens", answer.last("num_input_tokens"), tokens)

    for_all(is_answered)


@pytest.mark.requirement("GEN-029")
@pytest.mark.parametrize("words", [150, 900])
def test_long_prompts_that_end_differently(
    triton_grpc: GrpcClient, vllm_model: ModelUnderTest, vllm_harness: Harness, words: int
) -> None:
    """As with one long system prompt before each question: one after another, and at once."""
    # A word is two tokens or so of another model's.
    needs_context(vllm_harness, 2 * words + 200)
    sampling = {"temperature": 0, "max_tokens": TOKENS}
    head = " kilo" * words
    requests = [
        GenerateRequest(head + end, sampling=sampling, exclude_input_in_output=True)
        for end in (" lima", " mike", " golf", " oscar", " papa") * 2
    ]
    texts = [triton_grpc.generate(request).ok().text for request in requests]
    oracle = vllm_model.known_answer
    if oracle is not None:
        told = [oracle.answer(str(r.text_input), max_tokens=TOKENS).text for r in requests]
        expect.equal("texts, by prompt", texts, told)
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [answer.ok().text for answer in pool.map(triton_grpc.generate, requests)]
    expect_told_alike("texts of prompts sent at once", vllm_model, requests, together, texts)


@pytest.mark.requirement("GEN-029")
def test_prompts_that_begin_differently(triton_grpc: GrpcClient, known_answer: KnownAnswer) -> None:
    """A prompt's beginning counts, too. The model's answer depends on the end of the prompt alone,
    but the repetition penalty looks at all of it: of two words with the same bias, the answer is
    the one that is not at the prompt's beginning."""
    papa, tango = (known_answer.tokenize(word)[-1] for word in (" papa", " tango"))
    sampling = {
        "temperature": 0,
        "max_tokens": 1,
        "repetition_penalty": 2.0,
        "logit_bias": {str(papa): 10, str(tango): 10},
        "allowed_token_ids": [papa, tango],
    }
    requests = [
        GenerateRequest(begin + " kilo" * 60, sampling=sampling, exclude_input_in_output=True)
        for begin in (" papa", " tango") * 4
    ]
    if triton_grpc.generate(requests[0]).error is not None:
        untested("needs logit_bias with keys as JSON has them, which is GEN-005's")
    told = [" tango", " papa"] * 4
    texts = [triton_grpc.generate(request).ok().text for request in requests]
    expect.equal("texts, by prompt", texts, told)
    expect.equal("texts at once", at_once(triton_grpc.generate, requests, 8), told)


@pytest.mark.requirement("STR-018")
def test_any_stream_tells_what_the_unary_answer_tells(
    clients: Clients,
    vllm_model: ModelUnderTest,
    vllm_harness: Harness,
    for_all: Callable[[Property], None],
) -> None:
    is_sure = vllm_model.known_answer is not None
    needs_context(vllm_harness, ROOM if is_sure else OTHER_ROOM)

    # The story goes on with a space and a smiley: the one stops it, the other is banned.
    @example("Say mike", {"max_tokens": 12, "stop_token_ids": [36]}, {"temperature": 0}, "grpc")
    @example("Say mike", {"max_tokens": 12, "bad_words": ["😀"]}, {"temperature": 0}, "http")
    @given(
        prompt=st.just("Say" + STORY) | PROMPTS,
        sampling=SAMPLING,
        chance=CHANCE,
        protocol=PROTOCOLS,
    )
    def tells_the_same(
        prompt: str, sampling: dict[str, Any], chance: dict[str, Any], protocol: str
    ) -> None:
        request = GenerateRequest(
            prompt,
            sampling={**sampling, **chance},
            exclude_input_in_output=True,
            returns=("num_output_tokens",),
        )
        if not is_sure:
            # Both shall find the prompt in the prefix cache: numerics differ in the last bits.
            clients[protocol].generate(request)
        unary = clients[protocol].generate(request).ok()
        stream = clients[protocol].generate(request.but(stream=True)).ok()
        count = chance.get("n", 1)
        if count > 1 and not is_sure:
            # How many of several sequences begin in one step is chance, and with it the last bits:
            # they decide what is told, and so where it stops.
            return
        for index in range(count):
            expect.equal(f"joined text {index}", stream.text_of(index), unary.text_of(index))
            counts = [
                sum(response.value("num_output_tokens", index) for response in answer.data)
                for answer in (stream, unary)
            ]
            expect.equal(f"tokens of sequence {index}", counts[0], counts[1])

    for_all(tells_the_same)


@pytest.mark.requirement("ERR-024")
def test_any_sampling_parameters_are_survived(
    clients: Clients, for_all: Callable[[Property], None]
) -> None:
    good = GenerateRequest("Say alpha", sampling={"temperature": 0, "max_tokens": 4})
    told = clients["grpc"].generate(good).ok().text

    @given(sampling=BROKEN, protocol=PROTOCOLS)
    # Half a surrogate pair: JSON, but no text.
    @example(sampling='{"stop": ["\\ud800"]}', protocol="grpc")
    @example(sampling='{"\\udc00": 1}', protocol="http")
    # Known names with values of another shape.
    @example(sampling='{"stop_token_ids": {"a": 1}}', protocol="grpc")
    @example(sampling='{"logit_bias": [1, "a"]}', protocol="http")
    @example(sampling='{"temperature": [0.5]}', protocol="grpc")
    # No token of any model: on GPUs it would end the engine, if it got there.
    @example(sampling='{"stop_token_ids": [4000000], "min_tokens": 1}', protocol="grpc")
    @example(sampling='{"allowed_token_ids": [4000000]}', protocol="http")
    def is_survived(sampling: str, protocol: str) -> None:
        request = GenerateRequest("Say alpha", sampling=sampling)
        answer = clients[protocol].generate(request)
        if answer.seconds > ANSWER_SECONDS:
            # vLLM on CPUs compiles parts of its sampler when they are first needed.
            answer = clients[protocol].generate(request)
        expect.between("seconds until the answer", answer.seconds, 0, ANSWER_SECONDS)
        errors = sum(response.error is not None for response in answer.responses)
        expect.equal("responses with data, and errors", len(answer.data) + errors, 1)
        if answer.error is not None:
            expect.clean_error(answer.error)
        expect.equal("the next answer", clients["grpc"].generate(good).ok().text, told)

    for_all(is_survived)
