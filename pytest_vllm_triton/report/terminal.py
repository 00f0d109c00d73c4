"""The matrix at the end of a run: groups by verdict, and every requirement that is not green."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pytest_vllm_triton.report.results import RequirementResult, Results, count
from pytest_vllm_triton.verdicts import Verdict

_COLUMNS = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.ERROR,
    Verdict.XFAIL,
    Verdict.XPASS,
    Verdict.UNTESTED,
    Verdict.NOT_APPLICABLE,
)
_ALWAYS = (Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.UNTESTED)
_REASON_WIDTH = 160


class Writer(Protocol):
    """The part of pytest's terminal reporter that is used here."""

    def write_sep(self, sep: str, title: str, **markup: bool) -> None: ...
    def write_line(self, line: str, **markup: bool) -> None: ...


def write_summary(
    out: Writer, results: Results, facts: Sequence[tuple[str, str]], verdict: str
) -> None:
    """The facts about the run, the matrix, what is not green, and the verdict."""
    requirements = results.requirements()
    if not requirements:
        return
    out.write_sep("=", "vLLM backend conformance")
    for name, value in facts:
        out.write_line(f"{name:<10} {value}")
    out.write_line("")
    _write_matrix(out, results, requirements)
    _write_notable(out, requirements)
    totals = count(requirements)
    red = any(v.is_red for v in totals)
    out.write_line("")
    out.write_line(verdict, bold=True, red=red or not totals[Verdict.PASS], green=not red)


def _write_matrix(out: Writer, results: Results, requirements: list[RequirementResult]) -> None:
    totals = count(requirements)
    columns = [v for v in _COLUMNS if v in _ALWAYS or totals[v]]
    width = max(len(name) for name in results.catalogue.groups.values())
    header = "".join(f"{v.value:>10}" for v in columns)
    out.write_line(f"{'group':<{width + 4}}{header}", bold=True)
    for group, name in results.catalogue.groups.items():
        members = [r for r in requirements if r.requirement.group == group]
        if members:
            _write_row(out, f"{group} {name:<{width}}", members, columns)
    _write_row(out, f"{'all':<{width + 4}}", requirements, columns, bold=True)


def _write_row(
    out: Writer,
    title: str,
    members: list[RequirementResult],
    columns: list[Verdict],
    bold: bool = False,
) -> None:
    counts = count(members)
    cells = "".join(f"{counts[v] or '.':>10}" for v in columns)
    red = any(v.is_red for v in counts)
    out.write_line(title + cells, red=red, green=not red and bool(counts[Verdict.PASS]), bold=bold)


def _write_notable(out: Writer, requirements: list[RequirementResult]) -> None:
    notable = [r for r in requirements if r.verdict is not Verdict.PASS]
    for verdict in _COLUMNS:
        rows = [r for r in notable if r.verdict is verdict]
        if not rows:
            continue
        out.write_line("")
        for row in rows:
            requirement = row.requirement
            sentence = _shorten(requirement.sentence)
            out.write_line(
                f"{verdict.value:<8} {requirement.id} {requirement.level.value:<6} {sentence}",
                red=verdict.is_red,
                yellow=not verdict.is_red,
            )
            reason = row.reason.strip().splitlines()
            if reason:
                out.write_line(f"{'':<24} {_shorten(reason[0])}")
            decisive = next((c for c in row.checks if c.verdict is verdict), None)
            if decisive and decisive.expected:
                out.write_line(f"{'':<24}   expected  {_shorten(decisive.expected)}")
                out.write_line(f"{'':<24}   actual    {_shorten(decisive.actual)}")


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"
