"""Three faults on real servers: each turns its requirements red, and no other.

`make faults` tries all of them, which takes an hour.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fault_runner import run
from fault_table import load_faults

NAMES = ("last-chunk-lost", "answers-swapped", "temperature-ignored")
# All that the shared server can show of a request's answer.
CHECKS = frozenset({"GEN", "STR", "OUT"})


@pytest.mark.parametrize("name", NAMES)
def test_fault_is_caught(tmp_path: Path, name: str) -> None:
    fault = replace(load_faults()[name], checks=CHECKS)
    (outcome,) = run([fault], tmp_path, jobs=1, alone=True, tell=print)
    assert outcome.verdict == "caught", outcome
    assert fault.red <= set(outcome.red) <= fault.allowed


def test_sound_backend_is_not_blamed(tmp_path: Path) -> None:
    """A change that breaks nothing: the same way to a verdict, which must not be red."""
    fault = load_faults()["temperature-ignored"]
    harmless = replace(fault, new="        # as before\n" + fault.old, checks=frozenset({"STR"}))
    (outcome,) = run([harmless], tmp_path, jobs=1, alone=True, tell=print)
    assert outcome.verdict == "survived", outcome
    assert outcome.red == ()
