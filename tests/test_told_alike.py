"""How alike texts of requests that ran at once and alone have to be, of which model."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.traffic import expect_told_alike, greedy
from pytest_vllm_triton.expect import Violation
from pytest_vllm_triton.models.under_test import ModelUnderTest, known_answer_model

OTHER = ModelUnderTest("some/model", Path("/model"))
STREAMS = [greedy(f"number {i}", 64, stream=True) for i in range(8)]
ALONE = [f" is the {i}th of many numbers that there are" for i in range(8)]


def changed(**texts: str) -> list[str]:
    return [texts.get(f"at{i}", text) for i, text in enumerate(ALONE)]


def test_a_quarter_of_another_models_texts_may_differ() -> None:
    others = {"at1": " was the first of them, or so it", "at2": " may be the second one of the"}
    expect_told_alike("texts", OTHER, STREAMS, changed(**others), ALONE)
    with pytest.raises(Violation):
        expect_told_alike("texts", known_answer_model(), STREAMS, changed(**others), ALONE)
    more = changed(**others, at3=" can be the third one of the")
    with pytest.raises(Violation):
        expect_told_alike("texts", OTHER, STREAMS, more, ALONE)


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (changed(at1=ALONE[2], at2=ALONE[1]), "texts that have changed places"),
        (changed(at1=""), "texts that end early"),
        (changed(at1=ALONE[1][:10]), "texts that end early"),
    ],
    ids=["swapped", "empty", "cut"],
)
def test_what_numerics_do_not_do(texts: list[str], what: str) -> None:
    with pytest.raises(Violation) as violation:
        expect_told_alike("texts", OTHER, STREAMS, texts, ALONE)
    assert violation.value.what == what


def test_one_of_few() -> None:
    expect_told_alike(
        "texts", OTHER, STREAMS[:3], changed(at1=" was another number")[:3], ALONE[:3]
    )
    two = changed(at1=" was another number", at2=" was yet another number")
    with pytest.raises(Violation):
        expect_told_alike("texts", OTHER, STREAMS[:3], two[:3], ALONE[:3])


def test_each_text_begins_with_its_own_prompt() -> None:
    requests = [request.but(stream=None) for request in STREAMS]
    echoed = [f"number {i}{text}" for i, text in enumerate(ALONE)]
    expect_told_alike("texts", OTHER, requests, echoed, echoed)
    with pytest.raises(Violation, match="starts with 'number 3'"):
        expect_told_alike("texts", OTHER, requests, [*echoed[:3], "error: no", *echoed[4:]], echoed)
