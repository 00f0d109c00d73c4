"""What was found: one result per check, and from those one verdict per requirement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pytest_vllm_triton.known_failures import KnownFailure
from pytest_vllm_triton.requirements import Catalogue, Requirement
from pytest_vllm_triton.verdicts import Verdict, combine


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        test: the test's name, e.g. ``"test_streaming.py::test_deltas[http]"``.
        requirements: ids of the requirements that it decides.
        verdict: its outcome.
        seconds: how long it took, without the boot of a shared server.
        reason: why it did not pass, in a sentence or as an error text.
        expected, actual: what the violated assertion compared; "" when there was none.
        exchanges: the requests and responses, as (request, response, seconds) mappings.
        exchanges_left_out: how many more there were, in the middle.
        server_log: what the server logged since the check began.
    """

    test: str
    requirements: tuple[str, ...]
    verdict: Verdict
    seconds: float = 0.0
    reason: str = ""
    expected: str = ""
    actual: str = ""
    exchanges: tuple[Mapping[str, Any], ...] = ()
    exchanges_left_out: int = 0
    server_log: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: how it crosses process borders and enters the report."""
        return {**asdict(self), "verdict": self.verdict.value}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CheckResult:
        fields = dict(value)
        fields["verdict"] = Verdict(fields["verdict"])
        fields["requirements"] = tuple(fields["requirements"])
        fields["exchanges"] = tuple(fields["exchanges"])
        return cls(**fields)


@dataclass(frozen=True)
class RequirementResult:
    """The verdict of one requirement.

    Attributes:
        reason: of the check that decided the verdict.
        known_failure: its entry in the list of known failures, None if it has none.
        not_selected: how many more checks of it there are, which this run was to leave out.
    """

    requirement: Requirement
    verdict: Verdict
    checks: tuple[CheckResult, ...]
    reason: str = ""
    known_failure: KnownFailure | None = None
    not_selected: int = 0

    @property
    def seconds(self) -> float:
        return sum(check.seconds for check in self.checks)


@dataclass
class Results:
    """All checks of a session, collected as they end.

    Attributes:
        known_failures: the list of them, by requirement.
        selected: the requirements of every selected check, by the check's name.
        all_checks: those of every check that there is, selected or not.
        aborted: why the session ended before its checks ran, "" if it did not.
    """

    catalogue: Catalogue
    known_failures: Mapping[str, KnownFailure] = field(default_factory=dict)
    selected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    all_checks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checks: list[CheckResult] = field(default_factory=list)
    aborted: str = ""

    def expect(self, test: str, ids: tuple[str, ...]) -> None:
        """This check is to be run: without a result of it, its requirements are not decided."""
        self.selected[test] = ids

    def keep_only(self, tests: Collection[str], all_checks: Mapping[str, tuple[str, ...]]) -> None:
        """Of the expected checks, none but these will be run.

        Args:
            tests: the tests that are left, checks or not.
            all_checks: the requirements of every check that there is, selected or not.
        """
        self.selected = {test: ids for test, ids in self.selected.items() if test in tests}
        self.all_checks = dict(all_checks)

    def merge(
        self, selected: Mapping[str, Sequence[str]], all_checks: Mapping[str, Sequence[str]]
    ) -> None:
        """Add the checks that another process was to run, and those that it knows of."""
        self.selected.update({test: tuple(ids) for test, ids in selected.items()})
        self.all_checks.update({test: tuple(ids) for test, ids in all_checks.items()})

    def abort(self, reason: str) -> None:
        """No check can run, for this reason."""
        self.aborted = reason

    def add(self, result: CheckResult) -> None:
        self.checks.append(result)

    def requirements(self) -> list[RequirementResult]:
        """The verdict of every selected requirement, in the catalogue's order."""
        by_id: dict[str, list[CheckResult]] = {}
        for check in [*self.checks, *self.not_run()]:
            for key in check.requirements:
                by_id.setdefault(key, []).append(check)
        left_out = Counter(key for test in self.not_selected() for key in self.all_checks[test])
        return [
            replace(self._decide(requirement, by_id[key]), not_selected=left_out[key])
            for key, requirement in self.catalogue.items()
            if key in by_id
        ]

    def not_selected(self) -> set[str]:
        """Names of the checks that this run was to leave out."""
        return self.all_checks.keys() - self.selected.keys() - {c.test for c in self.checks}

    def not_run(self) -> list[CheckResult]:
        """Selected checks without a result: one that ran must not speak for one that did not."""
        ran = {check.test for check in self.checks}
        reason = self.aborted or "its check did not run: the session ended before"
        return [
            CheckResult(test, ids, Verdict.ERROR, reason=reason)
            for test, ids in self.selected.items()
            if test not in ran
        ]

    def _decide(self, requirement: Requirement, checks: list[CheckResult]) -> RequirementResult:
        known = self.known_failures.get(requirement.id)
        # Check by check, before they are combined: an ERROR beside an expected failure stays red.
        found = [known.judge_check(c.verdict) if known else c.verdict for c in checks]
        combined = combine(found)
        reason = checks[found.index(combined)].reason
        if known is None:
            return RequirementResult(requirement, combined, tuple(checks), reason)
        verdict = known.judge_requirement(combined)
        if verdict is Verdict.XPASS and combined is Verdict.PASS:
            reason = f"stale entry in the list of known failures: {known.reason} ({known.link})"
        elif verdict is Verdict.XFAIL:
            reason = f"known failure: {known.reason} ({known.link})"
        return RequirementResult(requirement, verdict, tuple(checks), reason, known)

    def totals(self) -> Counter[Verdict]:
        """How many requirements have which verdict."""
        return count(self.requirements())

    @property
    def decided_anything(self) -> bool:
        """Whether any requirement is more than UNTESTED or N/A.

        ERROR counts: it is red, and must not look like a run that had nothing to check.
        """
        silent = (Verdict.UNTESTED, Verdict.NOT_APPLICABLE)
        return any(result.verdict not in silent for result in self.requirements())


def count(results: Iterable[RequirementResult]) -> Counter[Verdict]:
    return Counter(result.verdict for result in results)
