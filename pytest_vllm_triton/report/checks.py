"""From one pytest report to one `CheckResult`, and what a failure shows on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.expect import Violation
from pytest_vllm_triton.known_failures import KnownFailure
from pytest_vllm_triton.report.results import CheckResult
from pytest_vllm_triton.requirements import Catalogue
from pytest_vllm_triton.transcript import Transcript
from pytest_vllm_triton.verdicts import Verdict, split_skip_reason

# The slice of a server's log that goes into a report: its end is where the cause usually is.
_MAX_LOG_CHARACTERS = 20_000

# Where a pytest report carries the result, as plain values: pytest-xdist sends those along.
RESULT_ATTRIBUTE = "vllm_triton_result"


def check_result(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    requirements: tuple[str, ...],
    transcript: Transcript,
    server_log: str,
) -> CheckResult | None:
    """The result that this phase of the test decides; None when it decides nothing.

    A passing set-up or teardown decides nothing; a failing one is an ERROR, never a skip.
    """
    verdict, reason, expected, actual = _outcome(item, call, report)
    if verdict is None:
        return None
    failed = verdict.is_red
    return CheckResult(
        test=item.nodeid,
        requirements=requirements,
        verdict=verdict,
        seconds=round(report.duration, 3) if report.when == "call" else 0.0,
        reason=encodable(reason),
        expected=encodable(expected),
        actual=encodable(actual),
        exchanges=tuple(
            {
                "request": encodable(exchange.request),
                "response": encodable(exchange.response),
                "seconds": round(exchange.seconds, 3),
            }
            for exchange in transcript.exchanges
        )
        if failed
        else (),
        exchanges_left_out=transcript.dropped if failed else 0,
        server_log=server_log[-_MAX_LOG_CHARACTERS:] if failed else "",
    )


def expect_known_failure(
    report: pytest.TestReport, result: CheckResult, known: Mapping[str, KnownFailure]
) -> CheckResult:
    """The result, and pytest's report, of a check whose failure is listed: an expected failure.

    A check that also decides a requirement which is not listed stays a failure.
    """
    entries = [known[key] for key in result.requirements if key in known]
    if result.verdict is not Verdict.FAIL or len(entries) < len(result.requirements):
        return result
    report.outcome = "skipped"
    report.wasxfail = "; ".join(f"{entry.reason} ({entry.link})" for entry in entries)
    return replace(result, verdict=Verdict.XFAIL)


def encodable(text: str) -> str:
    """The text with its lone surrogates, which no byte encoding takes, spelled out.

    A server can send them in JSON, and pytest-xdist and report files need bytes.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _outcome(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> tuple[Verdict | None, str, str, str]:
    """(verdict, reason, expected, actual) of one phase.

    The suite judges by `Violation` alone, and asserts what it takes for granted itself. A user's
    test judges by whatever assertion it makes.
    """
    if hasattr(report, "wasxfail"):
        verdict = Verdict.XFAIL if report.skipped else Verdict.XPASS
        return verdict, str(report.wasxfail), "", ""
    if report.skipped:
        assert call.excinfo is not None
        verdict, reason = split_skip_reason(str(call.excinfo.value))
        return verdict, reason, "", ""
    if report.passed:
        return (Verdict.PASS, "", "", "") if report.when == "call" else (None, "", "", "")
    if call.excinfo is None:
        # pytest itself failed a test that ran through: strict xfail.
        return Verdict.XPASS, str(report.longrepr), "", ""
    error = call.excinfo.value
    if report.when == "call" and isinstance(error, Violation):
        return Verdict.FAIL, error.what, error.expected, error.actual
    if (
        report.when == "call"
        and isinstance(error, AssertionError)
        and not assets.is_of_suite(item.path)
    ):
        return Verdict.FAIL, str(error), "", ""
    if isinstance(error, (ServerFailed, UserError)):
        return Verdict.ERROR, str(error), "", ""
    return Verdict.ERROR, f"{type(error).__name__}: {error}", "", ""


def describe_failure(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    result: CheckResult,
    catalogue: Catalogue,
    death: str = "",
) -> None:
    """Replace pytest's traceback by what the requirement says and what came instead.

    A traceback is kept where the suite itself broke, or where the user asks for it (``--tb=long``).

    Args:
        death: that the server ended meanwhile, which explains all the rest; "" if it did not.
    """
    error = call.excinfo.value if call.excinfo is not None else None
    keep_traceback = item.config.getoption("tbstyle") == "long"
    heading = [
        f"{key} {catalogue[key].level.value}  {catalogue[key].sentence}"
        for key in result.requirements
    ]
    if isinstance(error, (Violation, ServerFailed, UserError)) and not keep_traceback:
        cause = [death, ""] if death else []
        text = "\n".join([*cause, *heading, "", *_lines(error), "", _location(item, call)])
        report.longrepr = encodable(text)
    else:
        text = str(report.longrepr)
        if death or text != encodable(text):
            report.longrepr = encodable(f"{death}\n\n{text}" if death else text)
        report.sections.insert(0, ("requirement", "\n".join(heading)))
    if result.exchanges:
        left_out = result.exchanges_left_out
        report.sections.append(
            (
                "requests (>) and responses (<)"
                + (f", {left_out} in the middle left out" if left_out else ""),
                "\n".join(
                    f"> {e['request']}\n< {e['response']}  ({e['seconds']:.2f} s)"
                    for e in result.exchanges
                ),
            )
        )
    if result.server_log:
        report.sections.append(("server log since the check began", result.server_log))


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, Violation):
        return [f"{error.what}", f"  expected  {error.expected}", f"  actual    {error.actual}"]
    return str(error).splitlines()


def _location(item: pytest.Item, call: pytest.CallInfo[None]) -> str:
    """The line of the check that failed."""
    assert call.excinfo is not None
    for entry in reversed(call.excinfo.traceback):
        if str(entry.path) == str(item.path):
            return f"at {item.path}:{entry.lineno + 1}"
    return f"at {item.path}"
