"""What a gate must not let pass, beyond failing tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plugin_helpers import Report, verdicts

Judged = Callable[..., tuple[pytest.RunResult, Report]]

MIXED = """
@requirement('GEN-001')
def test_good(): pass
@requirement('STR-001')
def test_untested(): untested('needs a GPU')
@requirement('STR-002')
def test_streams(): pass
@requirement('EMB-001')
def test_not_claimed(): not_applicable('no embeddings')
"""


def test_untested_is_visible_but_not_red(judged: Judged) -> None:
    result, report = judged(MIXED)
    assert result.ret == 0
    assert report["conformant"] is True
    assert report["unmet"] == []
    result.stdout.fnmatch_lines(["UNTESTED STR-001 *", "*needs a GPU"])


@pytest.mark.parametrize(
    ("required", "unmet", "reason"),
    [
        ("STR-001", "STR-001", "UNTESTED: needs a GPU"),
        ("str", "STR", "UNTESTED: STR-001: needs a GPU"),
        ("GEN,STR", "STR", "UNTESTED: STR-001: needs a GPU"),
        ("EMB-001", "EMB-001", "N/A: no embeddings"),
        ("EMB", "EMB", "N/A: no embeddings"),
        ("GEN-002", "GEN-002", "no check of it was selected"),
        ("LOR", "LOR", "no check of it was selected"),
    ],
)
def test_required_and_not_decided_is_red(
    judged: Judged, required: str, unmet: str, reason: str
) -> None:
    result, report = judged(MIXED, f"--conformance-require={required}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report["conformant"] is False
    assert report["unmet"] == [{"required": unmet, "reason": reason}]
    assert report["verdict"].startswith("NOT CONFORMANT")
    assert verdicts(report)["STR-001"] == "UNTESTED"
    result.stdout.fnmatch_lines(
        [f"REQUIRED {unmet}  {reason}", f"NOT CONFORMANT: *required but not decided: {unmet}"]
    )


def test_required_and_decided_is_green(judged: Judged) -> None:
    result, report = judged(
        MIXED, "--conformance-require=GEN", "--conformance-require=STR-002,GEN-001"
    )
    assert result.ret == 0
    assert report["unmet"] == []


def test_required_failure_is_red_once(judged: Judged) -> None:
    """A failure decides: it is red by itself, and what was required has been tested."""
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): expect.equal('a', 1, 2)\n",
        "--conformance-require=GEN-001",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report["unmet"] == []


def test_nothing_collected_is_red(judged: Judged) -> None:
    result, report = judged("")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert report["conformant"] is False
    assert report["verdict"] == "NOTHING DECIDED: no requirement was checked"


def test_tests_without_a_requirement_decide_nothing(judged: Judged) -> None:
    """Where a report is asked for, tests that pass and check nothing are no green gate."""
    result, report = judged("def test_own(): pass\n")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert report["conformant"] is False
    result.stdout.fnmatch_lines(["NOTHING DECIDED: no requirement was checked"])


def test_requirement_that_nobody_checks_is_red_without_a_report(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass\n")
    result = pytester.runpytest("--conformance-require=GEN", str(pytester.path))
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["REQUIRED GEN  no check of it was selected"])


def test_mere_collection_is_no_gate(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass\n")
    result = pytester.runpytest(
        "--collect-only", "--conformance-require=GEN", "--conformance-report=r.json", pytester.path
    )
    assert result.ret == 0
    assert not (pytester.path / "r.json").exists()


def test_crash_in_a_shared_set_up_is_an_error_of_all_that_need_it(judged: Judged) -> None:
    result, report = judged(
        "@pytest.fixture(scope='session')\ndef server(): raise RuntimeError('no boot')\n"
        "@requirement('GEN-001')\ndef test_one(server): pass\n"
        "@requirement('GEN-002')\ndef test_two(server): pass\n"
        "@requirement('GEN-003')\ndef test_three(): pass\n"
    )
    assert verdicts(report) == {"GEN-001": "ERROR", "GEN-002": "ERROR", "GEN-003": "PASS"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_module_that_does_not_import_is_red(judged: Judged, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_broken="import no_such_module\n")
    result, report = judged("@requirement('GEN-001')\ndef test_it(): pass\n")
    assert result.ret != 0
    assert report["conformant"] is False
    assert verdicts(report) == {"GEN-001": "ERROR"}


def test_crash_of_a_worker_is_an_error(judged: Judged) -> None:
    result, report = judged(
        "import os\n"
        "@requirement('GEN-001')\ndef test_crash(): os._exit(3)\n"
        "@requirement('GEN-002')\ndef test_good(): pass\n",
        "-n2",
    )
    assert verdicts(report) == {"GEN-001": "ERROR", "GEN-002": "PASS"}
    assert report["conformant"] is False
    assert result.ret != 0
