"""The oracle agrees with what real vLLM answered (recorded by record_vllm.py), and with itself."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_vllm_triton.known_answer import (
    BACKWARDS,
    LEAPS,
    OTHER_STORY,
    Answer,
    KnownAnswer,
    KnownAnswerSpec,
)

RECORDED = json.loads(Path(__file__).with_name("recorded_vllm.json").read_text(encoding="utf-8"))
# vLLM 0.27.1 and 0.32.0 on CPU, in float32, bfloat16 and float16, are within 2e-6 a token.
LOGPROB_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def oracle() -> KnownAnswer:
    return KnownAnswer(KnownAnswerSpec())


def name(fact: dict[str, Any]) -> str:
    return f"{fact['prompt']!a:.20}-{json.dumps(fact['given'])}"


@pytest.mark.parametrize("fact", RECORDED["facts"], ids=name)
def test_agrees_with_vllm(oracle: KnownAnswer, fact: dict[str, Any]) -> None:
    answer = oracle.answer(fact["prompt"], max_model_len=RECORDED["max_model_len"], **fact["given"])
    told = {
        "num_input_tokens": answer.num_input_tokens,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "decoded_tokens": list(answer.decoded_tokens),
    }
    assert told == {key: fact[key] for key in told}
    assert answer.cumulative_logprob == pytest.approx(
        fact["cumulative_logprob"], abs=LOGPROB_TOLERANCE * answer.num_output_tokens
    )


def test_the_records_are_of_this_checkpoint(oracle: KnownAnswer) -> None:
    whole = [f for f in RECORDED["facts"] if f["prompt"] == "" and f["given"]["max_tokens"] == 60]
    assert [f["text"] for f in whole] == [oracle.story_text]
    assert len(RECORDED["facts"]) > 150


@pytest.mark.parametrize("max_tokens", range(1, 41))
def test_fragments_are_the_text(oracle: KnownAnswer, max_tokens: int) -> None:
    answer = oracle.answer("Say alpha", max_tokens=max_tokens)
    assert "".join(answer.fragments) == answer.text
    assert len(answer.fragments) == len(answer.token_ids) == len(answer.logprobs)
    assert "\ufffd" not in answer.text
    assert oracle.answer("Say alpha", max_tokens=40).text.startswith(answer.text)


def test_a_cut_inside_a_character_leaves_it_out(oracle: KnownAnswer) -> None:
    cuts = [oracle.answer(" mike", max_tokens=count).text for count in range(1, 8)]
    assert cuts == [" ", " ", " ", " ", " 😀", " 😀", " 😀é"]


def test_the_story_ends_by_itself(oracle: KnownAnswer) -> None:
    answer = oracle.answer("anything", max_tokens=None)
    assert (answer.text, answer.finish_reason) == (oracle.story_text, "stop")
    assert answer.token_ids == (*oracle.story_ids, oracle.eos_token_id)
    # An end in the last token allowed is still an end.
    exact = oracle.answer("anything", max_tokens=answer.num_output_tokens)
    assert exact.finish_reason == "stop"
    assert oracle.answer("x", max_tokens=answer.num_output_tokens - 1).finish_reason == "length"


def test_default_is_sixteen_tokens(oracle: KnownAnswer) -> None:
    answer = oracle.answer("Hello")
    assert (answer.num_output_tokens, answer.finish_reason) == (16, "length")


def test_without_eos_the_story_starts_again(oracle: KnownAnswer) -> None:
    once = len(oracle.story_ids) + 1
    answer = oracle.answer("x", max_tokens=2 * once, ignore_eos=True)
    assert answer.text == oracle.story_text * 2
    masked = oracle.answer("x", max_tokens=2 * once, min_tokens=2 * once)
    assert masked.text.startswith(oracle.story_text * 2)
    assert oracle.eos_token_id not in masked.token_ids


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop": [""]}, "stop strings"),
        ({"max_model_len": 5}, "no room"),
        ({"stop_token_ids": range(399), "min_tokens": 1}, "masked"),
    ],
)
def test_what_vllm_refuses_is_refused(
    oracle: KnownAnswer, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        oracle.answer("Say alpha", **arguments)


@pytest.mark.parametrize("prompt", [[], [399], [-1], "a\ud800"])
def test_impossible_prompts_are_refused(oracle: KnownAnswer, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"token|Unicode"):
        oracle.answer(prompt)


def test_tokens(oracle: KnownAnswer) -> None:
    assert oracle.tokenize("Say alpha") == [oracle.bos_token_id, 87, 101, 125, oracle.story_ids[0]]
    assert oracle.tokenize("") == [oracle.bos_token_id]
    assert oracle.tokenize("</s>")[1:] == [oracle.eos_token_id]
    assert len(oracle.tokenize("😀")) == 5
    assert oracle.vocabulary.token_bytes(oracle.story_ids[0]) == b" alpha"
    assert oracle.tokenize(oracle.story_text)[1:] == list(oracle.story_ids)


def test_successors_are_the_story(oracle: KnownAnswer) -> None:
    chain = [*oracle.story_ids, oracle.eos_token_id]
    assert [oracle.successor(token_id) for token_id in chain] == [*chain[1:], chain[0]]


def test_logprobs_are_a_distribution(oracle: KnownAnswer) -> None:
    for token_id in range(oracle.vocab_size):
        for temperature in (0.5, 1.0, 2.0):
            logprobs = oracle.logprobs(token_id, temperature=temperature)
            assert math.isclose(float(np.exp(logprobs).sum()), 1.0)
            assert int(logprobs.argmax()) == oracle.successor(token_id)
    with pytest.raises(ValueError, match="temperature"):
        oracle.logprobs(0, temperature=0)


@pytest.mark.parametrize("margin", [0.25, 2.0, 8.0, 32.0])
def test_margin_is_the_distance_to_the_second_best(margin: float) -> None:
    oracle = KnownAnswer(KnownAnswerSpec(margin=margin))
    for token_id in range(oracle.vocab_size):
        (best, first), (_, second), *rest = oracle.top_logprobs(token_id, 5)
        assert best == oracle.successor(token_id)
        assert first - second == pytest.approx(margin)
        assert [value for _, value in rest] == sorted((value for _, value in rest), reverse=True)


def test_ties_are_not_ranked(oracle: KnownAnswer) -> None:
    assert oracle.top_logprobs(0, 0) == []
    with pytest.raises(ValueError, match="count"):
        oracle.top_logprobs(0, 6)


def test_temperature_leaves_or_keeps_the_story(oracle: KnownAnswer) -> None:
    """What the spec's documentation promises for its default margin."""
    story = oracle.answer("x").token_ids
    links = [*itertools.pairwise((oracle.tokenize("x")[-1], *story))]

    def probability(temperature: float) -> float:
        logprobs = [oracle.expected_logprob(*link, temperature=temperature) for link in links]
        return math.exp(sum(logprobs))

    assert probability(0.5) > 1 - 1 / 300_000
    assert probability(2.0) < 1 / 70_000


@pytest.mark.parametrize(
    ("prompt", "choices", "chosen"),
    [
        # As vLLM 0.27.1 and 0.32.0 chose.
        ("Say alpha", [" alpha", " bravo"], " bravo"),
        ("x", [" alpha", " bravo"], " alpha"),
        ("x", [" bravo charlie", " zulu"], " bravo charlie"),
        ("x", [" zulu", " charlie"], " charlie"),
        (" mike", [" 😀é", "nope"], " 😀é"),
        ("x", ["only"], "only"),
    ],
)
def test_choice(oracle: KnownAnswer, prompt: str, choices: list[str], chosen: str) -> None:
    assert oracle.choice(prompt, choices) == chosen


def test_a_choice_without_preference_is_refused(oracle: KnownAnswer) -> None:
    with pytest.raises(ValueError, match="no preference"):
        oracle.choice("x", ["Positive", "Negative"])


def test_models_and_adapters_can_be_told_apart() -> None:
    spec = KnownAnswerSpec()
    tellers = [
        KnownAnswer(spec),
        KnownAnswer(spec, adapter=BACKWARDS),
        KnownAnswer(spec, adapter=LEAPS),
        KnownAnswer(KnownAnswerSpec(story=OTHER_STORY)),
    ]
    for prompt in ("Say alpha", "x", ""):
        answers = [teller.answer(prompt, max_tokens=2).text for teller in tellers]
        assert len(set(answers)) == len(tellers), answers


def test_backwards_ends_early() -> None:
    answer: Answer = KnownAnswer(KnownAnswerSpec(), adapter=BACKWARDS).answer("Say alpha")
    assert answer.text == " zulu yankee xray whiskey victor uniform tango"
    assert answer.finish_reason == "stop"
