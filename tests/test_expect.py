"""The assertions of checks."""

from __future__ import annotations

import pytest

from pytest_vllm_triton import expect


def test_what_is_waited_for_comes_in_time() -> None:
    expect.happened("seconds", 3.0, waited=10.0)
    # Its last look began in time, and took its own.
    expect.happened("seconds", 12.0, waited=10.0)
    for seconds, actual in ((None, "not yet"), (60.0, "60")):
        with pytest.raises(expect.Violation, match=rf"(?s)at most 10.*{actual}"):
            expect.happened("seconds", seconds, waited=10.0)
