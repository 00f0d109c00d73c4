"""From the outcome of tests to verdicts, and from those to pytest's exit status."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest
from plugin_helpers import Report, verdicts

from pytest_vllm_triton import assets
from pytest_vllm_triton.verdicts import Verdict, combine

Judged = Callable[..., tuple[pytest.RunResult, Report]]


def test_pass(judged: Judged) -> None:
    result, report = judged("@requirement('GEN-001')\ndef test_it(): pass\n")
    assert verdicts(report) == {"GEN-001": "PASS"}
    assert result.ret == 0
    assert report["conformant"] is True


@pytest.mark.parametrize(
    ("body", "verdict", "reason"),
    [
        ("expect.equal('status', 500, 200)", "FAIL", "status"),
        ("assert 1 == 2, 'plain'", "FAIL", "plain"),
        ("raise RuntimeError('broken')", "ERROR", "RuntimeError: broken"),
        ("pytest.fail('told so')", "ERROR", "Failed: told so"),
        ("pytest.xfail('known')", "XFAIL", "known"),
        ("untested('no GPU')", "UNTESTED", "no GPU"),
        ("pytest.skip('some reason')", "UNTESTED", "some reason"),
        ("not_applicable('not claimed')", "N/A", "not claimed"),
        ("pytest.importorskip('no_such_module')", "UNTESTED", "no_such_module"),
    ],
)
def test_outcome_of_the_call(judged: Judged, body: str, verdict: str, reason: str) -> None:
    _, report = judged(f"@requirement('GEN-001')\ndef test_it():\n    {body}\n")
    (row,) = report["requirements"]
    assert row["verdict"] == verdict
    assert reason in row["reason"]


@pytest.mark.parametrize(
    ("body", "verdict", "reason"),
    [
        ("expect.equal('status', 500, 200)", "FAIL", "status"),
        ("assert 1 == 2, 'plain'", "ERROR", "AssertionError: plain"),
        ("raise RuntimeError('broken')", "ERROR", "RuntimeError: broken"),
    ],
)
def test_the_suite_judges_by_violations_alone(
    judged: Judged,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    verdict: str,
    reason: str,
) -> None:
    """Its plain assertions are about itself, unlike those of a user's own tests."""
    monkeypatch.setattr(assets, "suite_dir", lambda: pytester.path)
    _, report = judged(f"@requirement('GEN-001')\ndef test_it():\n    {body}\n")
    (row,) = report["requirements"]
    assert row["verdict"] == verdict
    assert reason in row["reason"]


@pytest.mark.parametrize(
    "body", ["raise RuntimeError('x')", "assert False", "expect.equal('a', 1, 2)"]
)
@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_fixture_that_breaks_is_an_error(judged: Judged, body: str, phase: str) -> None:
    """Even with an assertion: what a fixture asserts is no statement about the requirement."""
    lines = [f"    {body}", "    yield"] if phase == "setup" else ["    yield", f"    {body}"]
    source = "@pytest.fixture\ndef broken():\n" + "\n".join(lines)
    result, report = judged(source + "\n@requirement('GEN-001')\ndef test_it(broken): pass\n")
    assert verdicts(report) == {"GEN-001": "ERROR"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_skip_in_a_fixture_is_untested(judged: Judged) -> None:
    result, report = judged(
        "@pytest.fixture\ndef absent(): untested('no server')\n"
        "@requirement('GEN-001')\ndef test_it(absent): pass\n"
        "@requirement('GEN-002')\ndef test_other(): pass\n"
    )
    assert verdicts(report) == {"GEN-001": "UNTESTED", "GEN-002": "PASS"}
    assert result.ret == 0


@pytest.mark.parametrize("strict", ["False", "True"])
def test_xpass_is_red(judged: Judged, strict: str) -> None:
    result, report = judged(
        f"@pytest.mark.xfail(reason='listed', strict={strict})\n"
        "@requirement('GEN-001')\ndef test_it(): pass\n"
    )
    assert verdicts(report) == {"GEN-001": "XPASS"}
    assert "listed" in report["requirements"][0]["reason"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report["conformant"] is False


def test_xfail_is_not_red(judged: Judged) -> None:
    result, report = judged(
        "@pytest.mark.xfail(reason='listed')\n"
        "@requirement('GEN-001')\ndef test_it(): expect.equal('a', 1, 2)\n"
    )
    assert verdicts(report) == {"GEN-001": "XFAIL"}
    assert result.ret == 0


@pytest.mark.parametrize("body", ["untested('x')", "not_applicable('x')"])
def test_nothing_decided_is_red(judged: Judged, body: str) -> None:
    result, report = judged(f"@requirement('GEN-001')\ndef test_it(): {body}\n")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert report["conformant"] is False
    assert report["verdict"].startswith("NOTHING DECIDED")


def test_ended_early_is_red(judged: Judged) -> None:
    """After -x, a requirement is not what its checks that ran say of it."""
    result, report = judged(
        "@requirement('GEN-001')\n@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(n): pass\n"
        "@requirement('GEN-002')\ndef test_bad(): expect.equal('a', 1, 2)\n"
        "@requirement('GEN-001')\ndef test_later(): pass\n"
        "@requirement('GEN-003')\ndef test_never(): pass\n",
        "-x",
    )
    assert verdicts(report) == {"GEN-001": "ERROR", "GEN-002": "FAIL", "GEN-003": "ERROR"}
    assert "did not run" in report["requirements"][0]["reason"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_ended_early_without_a_failure_is_called_interrupted(judged: Judged) -> None:
    """Nothing was found against the backend, and the verdict does not say so; but it is red."""
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): pass\n"
        "@requirement('GEN-002')\ndef test_ctrl_c(): pytest.exit('Ctrl-C')\n"
        "@requirement('GEN-003')\ndef test_never(): pass\n"
    )
    sentence = "INTERRUPTED: MUST 1 of 3 pass, 2 ERROR, 2 of 3 checks did not run"
    assert report["verdict"] == sentence
    assert report["conformant"] is False
    assert result.ret == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    "body", ["expect.equal('a', 1, 2)", "raise OSError"], ids=["FAIL", "ERROR"]
)
def test_ended_early_after_a_failure_is_not_conformant(judged: Judged, body: str) -> None:
    _, report = judged(
        f"@requirement('GEN-001')\ndef test_bad(): {body}\n"
        "@requirement('GEN-001')\ndef test_ctrl_c(): pytest.exit('Ctrl-C')\n"
        "@requirement('GEN-002')\ndef test_never(): pass\n"
    )
    assert report["verdict"].startswith("NOT CONFORMANT: ")
    assert report["verdict"].endswith(", 2 of 3 checks did not run")


def test_exit_in_the_middle_is_red(judged: Judged) -> None:
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): pass\n"
        "@requirement('GEN-002')\ndef test_exit(): pytest.exit('enough', returncode=0)\n"
    )
    assert verdicts(report) == {"GEN-001": "PASS", "GEN-002": "ERROR"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_several_requirements_and_several_checks(judged: Judged) -> None:
    _, report = judged(
        "pytestmark = requirement('STR-001')\n"
        "@requirement('GEN-001', 'GEN-002')\ndef test_good(): pass\n"
        "@requirement('GEN-002')\ndef test_bad(): expect.equal('a', 1, 2)\n"
    )
    assert verdicts(report) == {"GEN-001": "PASS", "GEN-002": "FAIL", "STR-001": "FAIL"}


def test_worst_verdict_wins() -> None:
    order = ["FAIL", "ERROR", "XPASS", "XFAIL", "UNTESTED", "PASS", "N/A"]
    assert {verdict.value for verdict in Verdict} == set(order)
    for worse, better in combinations_with_replacement(order, 2):
        pair = [Verdict(better), Verdict(worse)]
        assert combine(pair) is combine(pair[::-1]) is Verdict(worse)
    assert combine([]) is Verdict.UNTESTED
    assert [v.value for v in Verdict if v.is_red] == ["FAIL", "ERROR", "XPASS"]


def test_tests_without_requirements_change_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\ndef test_it(): pytest.skip('no')\n")
    result = pytester.runpytest()
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*conformance*")


def test_own_tests_beside_checks(judged: Judged) -> None:
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): pass\ndef test_own(): assert False\n"
    )
    assert verdicts(report) == {"GEN-001": "PASS"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


# -- selection -----------------------------------------------------------------------------------


def test_unknown_requirement(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.requirement('GEN-01')\ndef test_it(): pass\n")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_it: unknown requirement GEN-01. Did you mean 'GEN-*'?*"])


def test_marker_without_an_id(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.requirement\ndef test_it(): pass\n")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_it: a requirement marker without an id*"])


LEVELS = """
@requirement('GEN-001')
def test_must(): pass
@requirement('GEN-014')
def test_should(): pass
@requirement('CLI-007')
def test_may(): pass
@requirement('GEN-001', 'CLI-007')
def test_both(): pass
def test_own(): pass
"""


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("level=must", {"must", "both", "own"}),
        ("level=should", {"must", "should", "both", "own"}),
        ("level=may", {"must", "should", "may", "both", "own"}),
        ("select=GEN-014", {"should", "own"}),
        ("select=CLI", {"may", "both", "own"}),
        ("select=GEN-001,CLI-007", {"must", "may", "both", "own"}),
    ],
)
def test_requirements_are_selected(judged: Judged, option: str, names: set[str]) -> None:
    result, report = judged(LEVELS, f"--conformance-{option}")
    ran = {
        check["test"].rpartition("test_")[2]
        for row in report["requirements"]
        for check in row["checks"]
    }
    assert ran | {"own"} == names
    result.assert_outcomes(passed=len(names), deselected=5 - len(names))


# -- pytest-xdist --------------------------------------------------------------------------------

MIXED = """
@requirement('GEN-001')
def test_good(): pass
@requirement('GEN-002')
def test_bad(): expect.equal('text', 'a\\udc80', 'b')
@requirement('GEN-003')
def test_broken(): raise RuntimeError('lone \\udc80')
@requirement('GEN-004')
def test_untested(): untested('no GPU')
@requirement('GEN-005')
@pytest.mark.xfail(reason='listed')
def test_xpass(): pass
@requirement('GEN-006')
def test_not_claimed(): not_applicable('no')
"""
EXPECTED = {
    "GEN-001": "PASS",
    "GEN-002": "FAIL",
    "GEN-003": "ERROR",
    "GEN-004": "UNTESTED",
    "GEN-005": "XPASS",
    "GEN-006": "N/A",
}


@pytest.mark.parametrize("args", [(), ("-n2",)], ids=["alone", "xdist"])
def test_same_verdicts_with_xdist(judged: Judged, args: tuple[str, ...]) -> None:
    result, report = judged(MIXED, *args)
    assert verdicts(report) == EXPECTED
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*NOT CONFORMANT*"])


def test_xdist_knows_what_did_not_run(judged: Judged) -> None:
    source = "@requirement('GEN-002')\ndef test_bad(): expect.equal('a', 1, 2)\n" + "".join(
        f"@requirement('STR-{n:03}')\ndef test_{n}(): pass\n" for n in range(1, 18)
    )
    _, report = judged(source, "-n2", "--maxfail=1", "--dist=loadfile")
    assert len(report["requirements"]) == 18
    assert "ERROR" in verdicts(report).values()


def test_xdist_says_what_is_missing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.requirement('GEN-001')\ndef test_it(vllm_server): pass\n"
    )
    result = pytester.runpytest("-n2", "--vllm-model=./absent")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*absent' does not exist*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
