"""What a gate must not let pass, beyond failing tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_helpers import PREAMBLE, Report, verdicts

from pytest_vllm_triton import assets
from pytest_vllm_triton.session import suite_index

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


@pytest.mark.parametrize(
    ("conftest", "source", "status"),
    [
        ("", "def test_own(): assert False\n", pytest.ExitCode.TESTS_FAILED),
        ("", "def test_own(: pass\n", pytest.ExitCode.INTERRUPTED),
        ("", "def test_own(): raise KeyboardInterrupt\n", pytest.ExitCode.INTERRUPTED),
        ("def pytest_runtestloop(): raise OSError\n", "", pytest.ExitCode.INTERNAL_ERROR),
    ],
    ids=["fails", "syntax", "ctrl-c", "internal"],
)
def test_what_went_wrong_before_anything_was_decided_is_pytests_to_say(
    pytester: pytest.Pytester, conftest: str, source: str, status: pytest.ExitCode
) -> None:
    pytester.makeconftest(conftest)
    path = pytester.makepyfile(source)
    result = pytester.runpytest_subprocess("--conformance-report=report.json", path)
    assert result.ret == status
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["verdict"].startswith("NOTHING DECIDED")


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


# -- checks that pytest was told to leave out ------------------------------------------------------

PARTLY = """
@requirement('GEN-001')
@pytest.mark.parametrize('n', [1, 2])
def test_one(n): pass
@requirement('GEN-001', 'GEN-014')
def test_two(): pass
@requirement('STR-001')
def test_three(): pass
"""


def test_what_other_plugins_deselect_is_no_error(judged: Judged, pytester: pytest.Pytester) -> None:
    """What --lf leaves out was never to run; it is told as not selected."""
    source = PARTLY + "@requirement('STR-001')\ndef test_bad(): expect.equal('a', 1, 2)\n"
    judged(source, "-p", "cacheprovider")
    result, report = judged(source, "--lf")
    assert verdicts(report) == {"STR-001": "FAIL"}
    assert report["requirements"][0]["not_selected"] == 1
    result.assert_outcomes(failed=1)


def test_what_a_plugin_takes_away_in_silence_is_no_error(
    judged: Judged, pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(
        "import pytest\n@pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        "def pytest_collection_modifyitems(items):\n    yield\n    del items[1:]\n"
    )
    _, report = judged(PARTLY)
    assert verdicts(report) == {"GEN-001": "PASS"}


@pytest.mark.parametrize(
    ("args", "required", "reason"),
    [
        (["-ktest_one"], "GEN-001", "only 2 of 3 checks of it were selected"),
        (["-ktest_one or test_three"], "STR-001", ""),
        (["-mnot parametrize"], "GEN-001", "only 1 of 3 checks of it were selected"),
        (["--deselect=PATH::test_one[1]"], "gen", "only 2 of 3 checks of it were selected"),
        (["PATH::test_one[2]"], "GEN-001", "only 1 of 3 checks of it were selected"),
        (["-ktest_one", "-n1"], "GEN-001", "only 2 of 3 checks of it were selected"),
        (["--conformance-select=GEN-014"], "GEN-014", ""),
        (["--conformance-select=GEN-014"], "GEN-001", "only 1 of 3 checks of it were selected"),
        # Level and selection say which requirements of a group are asked for.
        (["--conformance-level=must", "-ktest_one or test_two"], "GEN", ""),
        (["--conformance-select=GEN-014"], "GEN", ""),
        (["-ktest_one"], "GEN", "only 2 of 3 checks of it were selected"),
    ],
)
def test_required_and_checked_in_part_is_red(
    pytester: pytest.Pytester, args: list[str], required: str, reason: str
) -> None:
    path = pytester.makepyfile(PREAMBLE + PARTLY)
    args = [arg.replace("PATH", path.name) for arg in args]
    given = [] if any(arg.startswith(path.name) for arg in args) else [str(path)]
    result = pytester.runpytest(
        *args, *given, f"--conformance-require={required}", "--conformance-report=r.json"
    )
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    unmet = [{"required": required.upper(), "reason": reason}] if reason else []
    assert report["unmet"] == unmet
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if reason else pytest.ExitCode.OK)


def test_checked_in_part_is_visible(judged: Judged) -> None:
    result, report = judged(PARTLY, "-ktest_two or test_three")
    assert {r["id"]: r["not_selected"] for r in report["requirements"]} == {
        "GEN-001": 2,
        "GEN-014": 0,
        "STR-001": 0,
    }
    result.stdout.fnmatch_lines(
        ["IN PART  checks that were selected: GEN-001 1 of 3", "", "CONFORMANT: *1 checked in part"]
    )


READ_ONE = """
from pytest_vllm_triton.session.state import COLLECTED_CHECKS

def pytest_collection_finish(session):
    checks = session.config.stash[COLLECTED_CHECKS].checks()
    tests = [test for test, ids in checks.items() if "ERR-015" in ids]
    print("KNOWN", *sorted({test.partition("[")[0].rpartition("/")[2] for test in tests}))
"""


def test_checks_of_files_that_were_not_read(pytester: pytest.Pytester) -> None:
    """pytest reads only the files that it is given: the suite's others are known by their text."""
    pytester.makeconftest(READ_ONE)
    path = assets.suite_dir() / "test_errors.py"
    options = ("-p", "conftest", "--collect-only", "-q", "-s")
    result = pytester.runpytest_subprocess(*options, f"{path}::test_too_long_prompt")
    expected = sorted(suite_index.tests_by_requirement()["ERR-015"])
    assert {name.partition("::")[0] for name in expected} > {"test_errors.py"}
    result.stdout.fnmatch_lines([f"KNOWN {' '.join(expected)}"])
