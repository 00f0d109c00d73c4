"""What changed between two reports: regressions, repairs, and what is not known any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_vllm_triton.requirements import Level
from pytest_vllm_triton.verdicts import Verdict

_UNDECIDED = (Verdict.UNTESTED, Verdict.NOT_APPLICABLE)
# Facts about a run that differ without meaning anything.
_INCIDENTAL = ("boots", "by hand")


class Kind(Enum):
    """What a change means; the value is the heading under which it is listed."""

    REGRESSION = "Regressions"
    REPAIR = "Repairs"
    NEWLY_UNTESTED = "Not decided any more"
    NEWLY_DECIDED = "Decided now"
    OTHER = "Other changes"
    NEW = "New requirements"
    REMOVED = "Removed requirements"
    STILL_RED = "Still red"


@dataclass(frozen=True)
class Change:
    """One requirement whose verdict differs, or is red in both reports.

    Attributes:
        old, new: its verdicts; None where the report does not have it.
        reason: the new report's.
    """

    id: str
    level: Level
    kind: Kind
    old: Verdict | None
    new: Verdict | None
    sentence: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The difference of two reports.

    Attributes:
        old_verdict, new_verdict: the sentences that closed the runs.
        differences: facts about the runs that differ, as name -> (old, new).
    """

    old_verdict: str
    new_verdict: str
    differences: Mapping[str, tuple[str, str]]
    changes: tuple[Change, ...]

    def of(self, kind: Kind) -> list[Change]:
        return [change for change in self.changes if change.kind is kind]

    @property
    def has_regressions(self) -> bool:
        return bool(self.of(Kind.REGRESSION))


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], catalogue: Collection[str]
) -> Comparison:
    """Compare two reports' documents.

    Args:
        catalogue: the ids of today: one that is in it and not in the new report was not checked,
            any other was removed.
    """
    before = {row["id"]: row for row in old["requirements"]}
    after = {row["id"]: row for row in new["requirements"]}
    # The new report's order, then what only the old one has.
    found = [_change(before.get(k), after.get(k), catalogue) for k in {**after, **before}]
    return Comparison(
        old_verdict=old["verdict"],
        new_verdict=new["verdict"],
        differences=_differences(_facts(old), _facts(new)),
        changes=tuple(change for change in found if change is not None),
    )


def _change(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, catalogue: Collection[str]
) -> Change | None:
    row = after or before
    assert row is not None
    level = Level(row["level"])
    old = Verdict(before["verdict"]) if before else None
    new = Verdict(after["verdict"]) if after else None
    kind = _kind(level, old, new, row["id"] in catalogue)
    if kind is None:
        return None
    reason = after["reason"] if after else "the new report does not have it"
    return Change(row["id"], level, kind, old, new, row["sentence"], reason)


def _kind(level: Level, old: Verdict | None, new: Verdict | None, exists: bool) -> Kind | None:
    """What the step from one verdict to the other means; None: nothing to tell."""
    if old is None:
        return Kind.NEW
    if new is None and not exists:
        return Kind.REMOVED
    if new is None or (new in _UNDECIDED and old not in _UNDECIDED):
        if old in _UNDECIDED:
            return None
        # A binding requirement that was shown to hold must not leave a gate in silence.
        lost = old is Verdict.PASS and level is Level.MUST
        return Kind.REGRESSION if lost else Kind.NEWLY_UNTESTED
    if new in (Verdict.FAIL, Verdict.ERROR):
        return Kind.STILL_RED if old in (Verdict.FAIL, Verdict.ERROR) else Kind.REGRESSION
    if new is old:
        return Kind.STILL_RED if new.is_red else None
    if new in (Verdict.PASS, Verdict.XPASS) and (old.is_red or old is Verdict.XFAIL):
        return Kind.REPAIR
    return Kind.NEWLY_DECIDED if old in _UNDECIDED and new is Verdict.PASS else Kind.OTHER


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    facts = {k: v for k, v in document["environment"].items() if k not in _INCIDENTAL}
    return {**facts, "suite": document["tool"]}


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {
        name: (old.get(name, "not known"), new.get(name, "not known"))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }
