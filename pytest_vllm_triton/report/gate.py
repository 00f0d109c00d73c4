"""Whether a gate may let the backend pass, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pytest_vllm_triton.report.results import RequirementResult, Results, count
from pytest_vllm_triton.requirements import Level, Requirement
from pytest_vllm_triton.texts import first_line
from pytest_vllm_triton.verdicts import Verdict


@dataclass(frozen=True)
class Unmet:
    """A requirement or group that the run had to decide and did not.

    Attributes:
        required: the group or id, as it was asked for.
        reason: what is missing.
    """

    required: str
    reason: str


@dataclass(frozen=True)
class Gate:
    """What the results of a run mean.

    Attributes:
        required: groups and ids that the run has to decide.
        aborted: whether the session ended before its checks ran.
        asked: whether the run was to check a requirement; of a group, only those count.
    """

    results: Results
    required: Sequence[str] = ()
    aborted: bool = False
    asked: Callable[[Requirement], bool] = lambda requirement: True

    @property
    def conformant(self) -> bool:
        """Whether a gate may let the backend pass."""
        red = any(verdict.is_red for verdict in self.results.totals())
        return not (red or self.unmet or self.aborted) and self.results.decided_anything

    @property
    def unmet(self) -> list[Unmet]:
        """What had to be decided and was not: UNTESTED must not hide in a gate that needs it."""
        rows = self.results.requirements()
        return [
            Unmet(name, reason) for name in self.required if (reason := self._missing(name, rows))
        ]

    def _missing(self, name: str, rows: Sequence[RequirementResult]) -> str:
        """Why the group or requirement is not decided; "" if it is."""
        is_group = name in self.results.catalogue.groups
        members = [r for r in rows if name in (r.requirement.id, r.requirement.group)]
        untested = [r for r in members if r.verdict is Verdict.UNTESTED]
        if not members:
            return "no check of it was selected"
        if untested:
            first = first_line(untested[0].reason)
            ids = ", ".join(r.requirement.id for r in untested)
            return f"UNTESTED: {ids}: {first}" if is_group else f"UNTESTED: {first}"
        if all(r.verdict is Verdict.NOT_APPLICABLE for r in members):
            return f"N/A: {members[0].reason}"
        return self._checked_in_part(name)

    def _checked_in_part(self, name: str) -> str:
        """How many checks of the group or requirement were left out; "" if none was.

        PASS then says less than it seems to. What --conformance-level and --conformance-select
        leave out of a group is not asked for, and so not missed.
        """
        results = self.results
        keys = {r.id for r in results.catalogue.by_group.get(name, ()) if self.asked(r)} or {name}
        checks = {test for test, ids in results.all_checks.items() if keys.intersection(ids)}
        left_out = checks & results.not_selected()
        if not left_out:
            return ""
        return f"only {len(checks) - len(left_out)} of {len(checks)} checks of it were selected"

    def sentence(self) -> str:
        """The sentence that closes the run."""
        rows = self.results.requirements()
        parts = []
        for level in Level:
            counts = count(r for r in rows if r.requirement.level is level)
            if total := sum(counts.values()):
                parts.append(f"{level.value} {counts[Verdict.PASS]} of {total} pass")
        totals = count(rows)
        parts += [
            f"{totals[verdict]} {verdict.value}"
            for verdict in Verdict
            if totals[verdict] and verdict is not Verdict.PASS
        ]
        if in_part := sum(1 for row in rows if row.not_selected):
            parts.append(f"{in_part} checked in part")
        if unmet := self.unmet:
            parts.append(f"required but not decided: {' '.join(u.required for u in unmet)}")
        if not_run := len(self.results.not_run()):
            parts.append(f"{not_run} of {len(self.results.selected)} checks did not run")
        return f"{self._word()}: {', '.join(parts) or 'no requirement was checked'}"

    def _word(self) -> str:
        if not self.results.decided_anything:
            return "NOTHING DECIDED"
        if self.conformant:
            return "CONFORMANT"
        return "INTERRUPTED" if self._ended_early_and_green else "NOT CONFORMANT"

    @property
    def _ended_early_and_green(self) -> bool:
        """Whether all that speaks against the backend is that checks did not run."""
        ran = replace(self.results, selected={})
        red = any(verdict.is_red for verdict in ran.totals())
        return bool(self.results.not_run()) and not (red or self.aborted)
