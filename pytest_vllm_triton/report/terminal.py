"""The matrix at the end of a run: groups by verdict, and every requirement that is not green."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol

from pytest_vllm_triton.report.gate import Gate
from pytest_vllm_triton.report.results import RequirementResult, Results, count
from pytest_vllm_triton.texts import cut, first_line
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
_WIDTH = 100
_INDENT = " " * 9
# More requirements than this with the same reason are listed by their ids alone.
_LISTED_ALONE = 3


class Writer(Protocol):
    """The part of pytest's terminal reporter that is used here."""

    def write_sep(self, sep: str, title: str, **markup: bool) -> None: ...
    def write_line(self, line: str, **markup: bool) -> None: ...


def write_summary(out: Writer, gate: Gate, facts: Sequence[tuple[str, str]]) -> None:
    """The facts about the run, the matrix, what is not green, and the verdict."""
    requirements = gate.results.requirements()
    out.write_sep("=", "vLLM backend conformance")
    for name, value in facts:
        out.write_line(f"{name:<10} {value}")
    out.write_line("")
    if requirements:
        _write_matrix(out, gate.results, requirements)
        _write_notable(out, requirements)
        _write_in_part(out, requirements)
        out.write_line("")
    if unmet := gate.unmet:
        for entry in unmet:
            out.write_line(f"REQUIRED {entry.required}  {_shorten(entry.reason)}", red=True)
        out.write_line("")
    green = gate.conformant
    out.write_line(gate.sentence(), bold=True, red=not green, green=green)


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
    for verdict in _COLUMNS:
        if verdict is Verdict.PASS:
            continue
        by_reason: dict[str, list[RequirementResult]] = {}
        for row in requirements:
            if row.verdict is verdict:
                by_reason.setdefault(row.reason, []).append(row)
        if by_reason:
            out.write_line("")
        for reason, rows in by_reason.items():
            if len(rows) > _LISTED_ALONE:
                _write_group(out, verdict, reason, rows)
            else:
                for row in rows:
                    _write_requirement(out, row)


def _write_in_part(out: Writer, requirements: list[RequirementResult]) -> None:
    """What the matrix counts though not all checks of it were selected."""
    parts = []
    for row in requirements:
        if row.not_selected:
            selected = len({check.test for check in row.checks})
            key = row.requirement.id
            parts.append(f"{key} {selected} of {selected + row.not_selected}")
    if parts:
        out.write_line("")
        text = f"checks that were selected: {', '.join(parts)}"
        for line in textwrap.wrap(
            f"{'IN PART':<9}{text}", _WIDTH, subsequent_indent=_INDENT, break_on_hyphens=False
        ):
            out.write_line(line, yellow=True)


def _write_group(out: Writer, verdict: Verdict, reason: str, rows: list[RequirementResult]) -> None:
    """Many requirements with one and the same reason: the reason once, and their ids."""
    _write_heading(out, verdict, f"{len(rows)} requirements: {_shorten(first_line(reason))}")
    ids = " ".join(row.requirement.id for row in rows)
    for line in textwrap.wrap(ids, _WIDTH - len(_INDENT)):
        out.write_line(_INDENT + line)


def _write_requirement(out: Writer, row: RequirementResult) -> None:
    requirement = row.requirement
    _write_heading(
        out,
        row.verdict,
        f"{requirement.id} {requirement.level.value:<6} {_shorten(requirement.sentence)}",
    )
    decisive = next((c for c in row.checks if c.verdict is row.verdict), None)
    if row.reason.strip():
        name = decisive.test.rpartition("::")[2] if decisive and row.verdict.is_red else ""
        out.write_line(_INDENT + _shorten(f"{name}: {first_line(row.reason)}".removeprefix(": ")))
    if decisive and decisive.expected:
        out.write_line(f"{_INDENT}  expected  {_shorten(decisive.expected)}")
        out.write_line(f"{_INDENT}  actual    {_shorten(decisive.actual)}")


def _write_heading(out: Writer, verdict: Verdict, text: str) -> None:
    red = verdict.is_red
    out.write_line(f"{verdict.value:<9}{text}", red=red, yellow=not red)


def _shorten(text: str) -> str:
    return cut(" ".join(text.split()), _WIDTH + 60)
