"""What a failure shows of long texts: the part that tells what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vllm_triton import expect

LOG = "\n".join(f"line {number}" for number in range(10_000))


def failure_of(check: Callable[[], None]) -> expect.Violation:
    with pytest.raises(expect.Violation) as raised:
        check()
    return raised.value


def test_what_should_not_be_there_is_shown_in_its_place() -> None:
    failure = failure_of(lambda: expect.lacks("log", LOG, "line 5000\n"))
    assert "line 4999\\nline 5000\\nline 5001" in failure.actual
    assert len(failure.actual) < 300


def test_text_that_lacks_something_is_shown_by_its_end() -> None:
    for failure in (
        failure_of(lambda: expect.contains("log", LOG, "secret")),
        failure_of(lambda: expect.matches("log", LOG, "secret")),
    ):
        assert failure.actual.startswith(f"{len(LOG)} characters, which end with")
        assert "line 9999" in failure.actual
        assert len(failure.actual) < 1200


def test_short_texts_are_shown_whole() -> None:
    assert failure_of(lambda: expect.contains("error", "no", "yes")).actual == "'no'"
    assert failure_of(lambda: expect.lacks("error", "no", "n")).actual == "'no'"


def test_descriptions_stand_without_quotes() -> None:
    failure = expect.Violation("answer", expect.Words("an error"), "text")
    assert (failure.expected, failure.actual) == ("an error", "'text'")
