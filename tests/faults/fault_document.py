"""The coverage table of the docs: which faults each requirement's checks have caught."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fault_runner import Outcome
from fault_table import Fault, load_exempt

from pytest_vllm_triton.requirements import Requirement, load_catalogue

_HEAD = """\
# Faults that the suite catches

A check that cannot fail is worth nothing. Each fault below is a small mistake, of the kind that
real changes to a backend make, put into a copy of this project's backend. The suite then ran
against it on a real server, and exactly the requirements that the fault violates turned red.

The faults are in `tests/faults/table/`; this page is made by
`make faults ARGS="NAMES --document docs/faults.md"`, which keeps what it says of others.
"""


def write_document(
    path: Path, faults: Mapping[str, Fault], outcomes: Mapping[str, Outcome]
) -> None:
    """Write the table from what was seen; faults without an outcome are left out."""
    path.write_text("\n".join(_lines(faults, outcomes)) + "\n", encoding="utf-8")


def read_document(path: Path, faults: Mapping[str, Fault]) -> dict[str, Outcome]:
    """What a page that `write_document` wrote says of those of `faults` that were caught."""
    found = {}
    for row in re.finditer(
        r"^\| `(.+)` \| .+ \| ([A-Z0-9, -]+) \|$", path.read_text("utf-8"), re.M
    ):
        name, red = row[1], tuple(row[2].split(", "))
        if name in faults:
            fault = faults[name]
            unrelated = tuple(key for key in red if key not in fault.allowed)
            missed = tuple(sorted(fault.red.difference(red)))
            found[name] = Outcome(name, red, unrelated, missed)
    return found


def _lines(faults: Mapping[str, Fault], outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    caught = sum(outcome.verdict == "caught" for outcome in outcomes.values())
    yield _HEAD
    yield f"{caught} of {len(outcomes)} faults were caught, each by its own requirements alone."
    if left := len(faults) - len(outcomes):
        yield f"In the table and not run for this page: {left}."
    yield "\n## Requirement → faults\n"
    yield "| requirement | level | faults that turned it red |"
    yield "|---|---|---|"
    exempt = load_exempt()
    for requirement in load_catalogue().values():
        names = [name for name, outcome in outcomes.items() if requirement.id in outcome.red]
        left = [
            name
            for name, fault in faults.items()
            if name not in outcomes and requirement.id in fault.red
        ]
        cell = _cell(requirement, names, left, exempt)
        yield f"| {requirement.id} | {requirement.level.value} | {cell} |"
    yield "\n## Fault → requirements\n"
    yield "| fault | the mistake | turned red |"
    yield "|---|---|---|"
    for name, outcome in outcomes.items():
        seen = ", ".join(outcome.red) or f"**{outcome.verdict}**"
        unrelated = f"; unrelated: **{', '.join(outcome.unrelated)}**" if outcome.unrelated else ""
        yield f"| `{name}` | {faults[name].what} | {seen}{unrelated} |"


def _cell(
    requirement: Requirement, caught: list[str], left: list[str], exempt: Mapping[str, str]
) -> str:
    if caught:
        return ", ".join(f"`{name}`" for name in caught)
    if left:
        return "not run: " + ", ".join(f"`{name}`" for name in left)
    if requirement.needs != "cpu":
        return f"*needs {requirement.needs}*"
    return f"*{exempt[requirement.id]}*" if requirement.id in exempt else "none"
