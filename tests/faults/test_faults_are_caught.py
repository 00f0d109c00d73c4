"""Three faults on real servers: each turns its requirements red, and no other.

`make faults` tries all of them, which takes hours.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from fault_runner import Outcome, run
from fault_table import LONG, Fault, load_catalogue, load_faults

# What the shared model can show of a request's answer, without what takes long and is of other
# matters: forms of parameters, crowds, prompts of all kinds, the pace of tokens.
GROUPS = ("GEN", "STR", "OUT")
SLOW = {"GEN-007", "GEN-011", "GEN-021", "GEN-029", "OUT-001", "OUT-004", "OUT-007"} | {"STR-005"}
# Ask other models, too: an engine to load for each.
OF_OTHER_MODELS = {"GEN-002", "GEN-023", "GEN-030", "OUT-011"}
CHECKS = frozenset(
    key
    for key, one in load_catalogue().items()
    if one.group in GROUPS and key not in SLOW | OF_OTHER_MODELS | LONG
)
FAULTS = {
    name: replace(load_faults()[name], checks=CHECKS)
    for name in ("last-chunk-lost", "answers-swapped", "temperature-ignored")
}


def harmless() -> Fault:
    """A change that breaks nothing: the same way to a verdict, which must not be red."""
    fault = FAULTS["temperature-ignored"]
    new = "        # as before\n" + fault.old
    return replace(fault, name="harmless", new=new, checks=fault.red)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    # One at a time: of two engines on two processors each takes four times as long.
    found = run(
        [*FAULTS.values(), harmless()], tmp_path_factory.mktemp("f"), jobs=1, alone=True, tell=print
    )
    return {outcome.fault: outcome for outcome in found}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, fault = outcomes[name], FAULTS[name]
    assert outcome.verdict == "caught", outcome
    assert fault.red <= set(outcome.red) <= fault.allowed
    assert outcome.errors == ()


def test_sound_backend_is_not_blamed(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["harmless"].verdict == "survived", outcomes["harmless"]
    assert outcomes["harmless"].red == ()
