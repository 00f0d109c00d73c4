"""The hooks that turn results into the end of a run: summary, report file, exit status.

With pytest-xdist they act in the controller, where the reports of all workers arrive.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_triton.servers.boots import Boot
from pytest_vllm_triton.session.state import SETTINGS

if TYPE_CHECKING:
    from pytest_vllm_triton.report.gate import Gate
    from pytest_vllm_triton.report.results import Results
    from pytest_vllm_triton.servers.harness import Harness

# Under this key a worker of pytest-xdist tells the controller what its reports do not.
_WORKER_OUTPUT = "vllm_triton"


class Judge:
    """Collects the results of all checks and says what they mean."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._abort_status: pytest.ExitCode | None = None
        self._abort_reason = ""
        self._report_errors: list[str] = []
        self._written: list[Path] = []
        # None as long as no test of this process needs a server.
        self._harness: Harness | None = None
        self._results: Results | None = None
        self._worker_boots: list[Boot] = []
        self._worker_facts: dict[str, str] = {}

    @property
    def results(self) -> Results:
        """What the checks have shown so far; in a session without checks nobody asks for it."""
        if self._results is None:
            self._results = self._no_results()
        return self._results

    def _no_results(self) -> Results:
        from pytest_vllm_triton.report.results import Results
        from pytest_vllm_triton.requirements import load_catalogue

        return Results(load_catalogue(), known_failures=self._config.stash[SETTINGS].known_failures)

    def watch(self, harness: Harness) -> None:
        """The servers of this process are these: what is under test and the boots are theirs."""
        self._harness = harness

    def expect_check(self, nodeid: str, ids: tuple[str, ...]) -> None:
        """See `Results.expect`."""
        self.results.expect(nodeid, ids)

    def keep_only(
        self, nodeids: Collection[str], all_checks: Mapping[str, tuple[str, ...]]
    ) -> None:
        """See `Results.keep_only`."""
        self.results.keep_only(nodeids, all_checks)

    def abort(self, reason: str, status: pytest.ExitCode) -> None:
        """No check can run, for this reason; the session ends with this status."""
        self._abort_reason = reason
        self._abort_status = status
        self.results.abort(reason)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from pytest_vllm_triton.report.checks import RESULT_ATTRIBUTE
        from pytest_vllm_triton.report.results import CheckResult

        value = getattr(report, RESULT_ATTRIBUTE, None)
        # pytest-rerunfailures runs the test again: what counts is the last run.
        is_last = str(report.outcome) != "rerun"
        if value is not None and is_last and not self._is_worker:
            self.results.add(CheckResult.from_dict(value))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._abort_reason:
            terminalreporter.write_sep("=", "no check was run", red=True, bold=True)
            terminalreporter.write_line(self._abort_reason)
        if self._must_decide and not self._is_dry_run:
            from pytest_vllm_triton.report.terminal import write_summary

            write_summary(terminalreporter, self._document())
        for error in self._report_errors:
            terminalreporter.write_line(f"The report was not written: {error}", red=True)
        for path in self._written:
            terminalreporter.write_line(f"report: {path}")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        if self._is_worker:
            self._send_to_controller()
            return (yield)
        if self._is_dry_run:
            return (yield)
        if self._abort_status is not None:
            session.exitstatus = self._abort_status
        elif self._must_decide and not self.results.decided_anything:
            # A run that decided nothing must not pass a gate. If pytest says already that something
            # went wrong, that is why nothing was decided.
            session.exitstatus = session.exitstatus or pytest.ExitCode.NO_TESTS_COLLECTED
        elif self._must_decide and not self._gate.conformant and not session.exitstatus:
            # What pytest lets pass and a gate must not: XPASS, UNTESTED where it is required, and a
            # session that was ended early.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._write_reports()
        if self._report_errors:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return (yield)

    @property
    def _is_dry_run(self) -> bool:
        option = self._config.option
        shows = option.showfixtures or option.show_fixtures_per_test
        return bool(option.collectonly or option.setupplan or shows)

    def _send_to_controller(self) -> None:
        output: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]
        if self._results is not None:
            output[_WORKER_OUTPUT] = {
                "selected": {test: list(ids) for test, ids in self.results.selected.items()},
                "all_checks": {test: list(ids) for test, ids in self.results.all_checks.items()},
                "facts": self._facts(),
                "boots": [asdict(boot) for boot in self._boots()],
            }

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """pytest-xdist: a worker has ended."""
        sent = getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT)
        if sent is None:
            return
        self.results.merge(sent["selected"], sent["all_checks"])
        self._worker_boots += [Boot(**boot) for boot in sent["boots"]]
        self._worker_facts = {k: v for k, v in sent["facts"].items() if k != "boots"}

    @property
    def _has_requirements(self) -> bool:
        """Whether any selected test is a check."""
        if self._is_worker or self._is_dry_run or self._results is None:
            return False
        return bool(self.results.selected or self.results.checks)

    @property
    def _must_decide(self) -> bool:
        """Whether this run is a gate: it has checks, or was asked for what only checks can give."""
        settings = self._config.stash[SETTINGS]
        return self._has_requirements or bool(settings.reports or settings.required)

    @property
    def _gate(self) -> Gate:
        from pytest_vllm_triton.report.gate import Gate

        settings = self._config.stash[SETTINGS]
        return Gate(
            self.results,
            settings.required,
            aborted=self._abort_status is not None,
            asked=settings.asks_for,
        )

    def _facts(self) -> dict[str, str]:
        facts = dict(self._worker_facts) if self._harness is None else self._harness.describe()
        if boots := self._boots():
            seconds = ", ".join(
                f"{boot.seconds:.1f} s{'' if boot.ready else ' (failed)'}" for boot in boots
            )
            facts["boots"] = f"{len(boots)} ({seconds})"
        return facts

    def _boots(self) -> list[Boot]:
        return self._worker_boots if self._harness is None else self._harness.boots

    def _document(self) -> dict[str, Any]:
        from pytest_vllm_triton.report.document import build_document

        return build_document(self._gate, environment=self._facts(), boots=self._boots())

    def _write_reports(self) -> None:
        paths = self._config.stash[SETTINGS].reports
        if not paths:
            return
        from pytest_vllm_triton.report.formats import write_report

        document = self._document()
        for path in paths:
            try:
                write_report(document, path)
            except OSError as error:
                self._report_errors.append(str(error))
            else:
                self._written.append(path)
