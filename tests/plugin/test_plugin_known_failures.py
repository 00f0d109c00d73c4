"""A list of known failures: what it does to verdicts, and what a broken list says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from plugin_helpers import Report, verdicts

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.known_failures import load_known_failures
from pytest_vllm_triton.requirements import load_catalogue

Judged = Callable[..., tuple[pytest.RunResult, Report]]

FAILING = "@requirement('GEN-001')\ndef test_it(): expect.equal('status', 500, 200)\n"
PASSING = "@requirement('GEN-001')\ndef test_it(): pass\n"
OTHER = "@requirement('GEN-002')\ndef test_other(): pass\n"


def entry(key: str, more: str = "") -> str:
    return f'[{key}]\nreason = "told so"\nlink = "https://example.org/7"\n{more}'


@pytest.fixture
def listed(judged: Judged, pytester: pytest.Pytester) -> Judged:
    """Run tests with GEN-001 on the list, or another list."""

    def run(source: str, *args: str, known: str = entry("GEN-001")) -> Any:
        (pytester.path / "known.toml").write_text(known)
        return judged(source, "--known-failures=known.toml", *args)

    return run


def row(report: Report, key: str) -> dict[str, Any]:
    return next(entry for entry in report["requirements"] if entry["id"] == key)


def test_listed_failure_is_expected(listed: Judged) -> None:
    result, report = listed(FAILING + OTHER)
    assert verdicts(report) == {"GEN-001": "XFAIL", "GEN-002": "PASS"}
    assert result.ret == 0
    assert report["conformant"] is True
    result.assert_outcomes(passed=1, xfailed=1)
    assert "told so" in row(report, "GEN-001")["reason"]
    assert row(report, "GEN-001")["known_failure"]["link"] == "https://example.org/7"
    assert row(report, "GEN-002")["known_failure"] is None
    # What came instead is still in the report.
    (check,) = row(report, "GEN-001")["checks"]
    assert (check["verdict"], check["expected"], check["actual"]) == ("XFAIL", "200", "500")
    result.stdout.fnmatch_lines(["XFAIL *GEN-001 *", "*told so (https://example.org/7)"])


def test_same_failure_is_red_without_the_list(judged: Judged) -> None:
    result, report = judged(FAILING + OTHER)
    assert verdicts(report)["GEN-001"] == "FAIL"
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_listed_requirement_that_passes_is_a_stale_entry(listed: Judged) -> None:
    result, report = listed(PASSING + OTHER)
    assert verdicts(report) == {"GEN-001": "XPASS", "GEN-002": "PASS"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report["conformant"] is False
    assert row(report, "GEN-001")["reason"].startswith("stale entry")
    result.stdout.fnmatch_lines(["XPASS *GEN-001 *", "*stale entry*told so*"])


def test_one_that_fails_sometimes_may_pass(listed: Judged) -> None:
    known = entry("GEN-001", "sometimes = true\n")
    result, report = listed(PASSING, known=known)
    assert verdicts(report) == {"GEN-001": "PASS"}
    assert result.ret == 0
    _, report = listed(FAILING, known=known)
    assert verdicts(report) == {"GEN-001": "XFAIL"}


def test_one_failing_check_of_several_is_enough(listed: Judged) -> None:
    result, report = listed(
        FAILING + "@requirement('GEN-001')\ndef test_second(): pass\n" + OTHER,
    )
    assert verdicts(report)["GEN-001"] == "XFAIL"
    assert result.ret == 0


@pytest.mark.parametrize(
    ("body", "verdict"),
    [("untested('no GPU')", "UNTESTED"), ("not_applicable('no')", "N/A")],
)
def test_what_was_not_decided_is_neither(listed: Judged, body: str, verdict: str) -> None:
    _, report = listed(f"@requirement('GEN-001')\ndef test_it(): {body}\n" + OTHER)
    assert verdicts(report)["GEN-001"] == verdict


@pytest.mark.parametrize(
    "source",
    [
        "@requirement('GEN-001')\ndef test_it(): raise OSError('crash')\n",
        (
            "@pytest.fixture\ndef broken(): raise OSError('crash')\n"
            "@requirement('GEN-001')\ndef test_it(broken): pass\n"
        ),
        (
            "@pytest.fixture\ndef broken(): yield; raise OSError('crash')\n"
            "@requirement('GEN-001')\ndef test_it(broken): expect.equal('a', 1, 2)\n"
        ),
    ],
    ids=["call", "setup", "teardown of an expected failure"],
)
def test_crash_is_no_known_failure(listed: Judged, source: str) -> None:
    result, report = listed(source)
    assert verdicts(report) == {"GEN-001": "ERROR"}
    assert "crash" in row(report, "GEN-001")["reason"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_check_of_another_requirement_stays_red(listed: Judged) -> None:
    """The list excuses GEN-001; the same check also decides GEN-002."""
    result, report = listed(
        "@requirement('GEN-001', 'GEN-002')\ndef test_it(): expect.equal('a', 1, 2)\n"
    )
    assert verdicts(report) == {"GEN-001": "XFAIL", "GEN-002": "FAIL"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_junit_says_so(listed: Judged) -> None:
    listed(FAILING, "--junitxml=junit.xml")
    (case,) = ElementTree.parse("junit.xml").iter("testcase")
    properties = {(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")}
    assert {("requirement", "GEN-001"), ("verdict", "XFAIL")} <= properties
    assert case.find("failure") is None


def test_with_xdist(listed: Judged) -> None:
    result, report = listed(
        FAILING + OTHER + "@requirement('GEN-003')\ndef test_third(): pass\n",
        "-n2",
        known=entry("GEN-001") + entry("GEN-003"),
    )
    assert verdicts(report) == {"GEN-001": "XFAIL", "GEN-002": "PASS", "GEN-003": "XPASS"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (entry("GEN-0001"), ["no requirement 'GEN-0001'", "Did you mean 'GEN-001'?"]),
        (entry("CAN-014"), ["CAN-014 cannot fail", "no check"]),
        ('[GEN-001]\nlink = "https://x.org"\n', ["GEN-001 needs a reason"]),
        ('[GEN-001]\nreason = "x"\n', ["GEN-001 needs a link"]),
        ('[GEN-001]\nreason = " "\nlink = "https://x.org"\n', ["needs a reason"]),
        ('[GEN-001]\nreason = "x"\nlink = "later"\n', ["'later' is no http(s) address"]),
        (entry("GEN-001", "sometime = true\n"), ["'sometime'", "Did you mean 'sometimes'?"]),
        (entry("GEN-001", "sometimes = 1\n"), ["'sometimes' is true or false"]),
        ("GEN-001 = 5\n", ["GEN-001 is no table"]),
        ("[GEN-001\n", ["not valid TOML"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_broken_list(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_known_failures(path)
    message = str(caught.value)
    for part in ["known.toml", *parts]:
        assert part in message
    assert "\n" not in message


def test_broken_list_is_a_usage_error(pytester: pytest.Pytester) -> None:
    (pytester.path / "known.toml").write_text(entry("GEN-0001"))
    result = pytester.runpytest("--known-failures=known.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--known-failures: *no requirement 'GEN-0001'*"])


@pytest.mark.parametrize("path", assets.known_failures(), ids=lambda path: path.stem)
def test_shipped_lists_are_valid(path: Path) -> None:
    known = load_known_failures(path)
    assert known
    # The catalogue notes each of these flaws too, so that `explain` tells of it.
    catalogue = load_catalogue()
    assert [key for key in known if not catalogue[key].upstream] == []
