"""The words of the report, and the two ways in which a check can say that it did not decide."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NoReturn

import pytest


class Verdict(Enum):
    """The outcome of one check, and of one requirement.

    The members' order has a meaning: from the worst on. `combine` takes the first.
    """

    FAIL = "FAIL"  # the backend violates the requirement
    ERROR = "ERROR"  # the suite or the boot broke: nothing is known about the backend
    XPASS = "XPASS"  # a listed known failure that passes: the list is stale
    XFAIL = "XFAIL"  # a listed known failure
    UNTESTED = "UNTESTED"  # this host, launcher or model cannot show it
    PASS = "PASS"
    NOT_APPLICABLE = "N/A"  # it does not apply to this model or server

    @property
    def is_red(self) -> bool:
        return self in (Verdict.FAIL, Verdict.ERROR, Verdict.XPASS)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a requirement from those of its checks: the worst one.

    UNTESTED outranks PASS, so that one check that ran never hides one that could not.
    No check at all is UNTESTED.
    """
    order = list(Verdict)
    return min(verdicts, key=order.index, default=Verdict.UNTESTED)


def untested(reason: str) -> NoReturn:
    """End the running check: this host, launcher or model cannot decide it."""
    pytest.skip(f"{Verdict.UNTESTED.value}: {reason}")


def not_applicable(reason: str) -> NoReturn:
    """End the running check: what it checks does not apply to this model or server."""
    pytest.skip(f"{Verdict.NOT_APPLICABLE.value}: {reason}")


def split_skip_reason(reason: str) -> tuple[Verdict, str]:
    """The verdict and the plain reason of a skipped check."""
    reason = reason.removeprefix("Skipped: ")
    for verdict in (Verdict.NOT_APPLICABLE, Verdict.UNTESTED):
        prefix = f"{verdict.value}: "
        if reason.startswith(prefix):
            return verdict, reason.removeprefix(prefix)
    return Verdict.UNTESTED, reason
