"""A backend that violates a property only now and then FAILs: it is no ERROR of the suite."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure

from conformance.test_properties import check
from pytest_vllm_triton import expect
from pytest_vllm_triton.expect import Violation

SAME_INPUTS = settings(derandomize=True, database=None, max_examples=20)


def test_violation_once() -> None:
    calls = itertools.count()

    @SAME_INPUTS
    @given(st.integers())
    def holds(number: int) -> None:
        expect.equal("answer", "wrong" if next(calls) == 5 else "right", "right")

    with pytest.raises(Violation) as violation:
        check(holds)
    assert violation.value.actual == "'wrong'"


def test_no_violation() -> None:
    @SAME_INPUTS
    @given(st.integers())
    def holds(number: int) -> None:
        expect.equal("answer", "right", "right")

    check(holds)


def test_stumble_stays_one() -> None:
    calls = itertools.count()

    @SAME_INPUTS
    @given(st.integers())
    def holds(number: int) -> None:
        if next(calls) == 5:
            raise OSError("no connection")

    with pytest.raises(FlakyFailure) as group:
        check(holds)
    assert [type(error) for error in group.value.exceptions] == [OSError]
