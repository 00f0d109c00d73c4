"""The matrix at the end of a run: groups by verdict, and every requirement that is not green."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pytest_vllm_triton.report import view
from pytest_vllm_triton.report.view import Row
from pytest_vllm_triton.texts import cut, first_line
from pytest_vllm_triton.verdicts import Verdict

_ALWAYS = (Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.UNTESTED)
_WIDTH = 100
_INDENT = " " * 9
# More requirements than this with the same reason are listed by their ids alone.
_LISTED_ALONE = 3


class Writer(Protocol):
    """The part of pytest's terminal reporter that is used here."""

    def write_sep(self, sep: str, title: str, **markup: bool) -> None: ...
    def write_line(self, line: str, **markup: bool) -> None: ...


def write_summary(out: Writer, document: Mapping[str, Any]) -> None:
    """The facts about the run, the matrix, what is not green, and the verdict."""
    out.write_sep("=", "vLLM backend conformance")
    for name, value in document["environment"].items():
        out.write_line(f"{name:<10} {value}")
    out.write_line("")
    if document["requirements"]:
        _write_matrix(out, document)
        _write_notable(out, document)
        _write_in_part(out, document["requirements"])
        out.write_line("")
    if unmet := document["unmet"]:
        for entry in unmet:
            out.write_line(f"REQUIRED {entry['required']}  {_shorten(entry['reason'])}", red=True)
        out.write_line("")
    green = document["conformant"]
    out.write_line(document["verdict"], bold=True, red=not green, green=green)


def _write_matrix(out: Writer, document: Mapping[str, Any]) -> None:
    columns = [v for v in view.SHOWN if v in _ALWAYS or document["totals"][v.value]]
    width = max(len(name) for name in document["groups"].values())
    header = "".join(f"{v.value:>10}" for v in columns)
    out.write_line(f"{'group':<{width + 4}}{header}", bold=True)
    rows = document["requirements"]
    for group, name in document["groups"].items():
        members = [row for row in rows if row["group"] == group]
        _write_row(out, f"{group} {name:<{width}}", members, columns)
    _write_row(out, f"{'all':<{width + 4}}", rows, columns, bold=True)


def _write_row(
    out: Writer,
    title: str,
    members: Sequence[Row],
    columns: list[Verdict],
    bold: bool = False,
) -> None:
    counts = view.cell(members).counts
    cells = "".join(f"{counts[v] or '.':>10}" for v in columns)
    red = any(v.is_red for v in counts)
    out.write_line(title + cells, red=red, green=not red and bool(counts[Verdict.PASS]), bold=bold)


def _write_notable(out: Writer, document: Mapping[str, Any]) -> None:
    for verdict in view.SHOWN:
        if verdict is Verdict.PASS:
            continue
        by_reason = view.by_reason(view.rows_with(document, verdict))
        if by_reason:
            out.write_line("")
        for reason, rows in by_reason.items():
            if len(rows) > _LISTED_ALONE:
                _write_group(out, verdict, reason, rows)
            else:
                for row in rows:
                    _write_requirement(out, row)


def _write_in_part(out: Writer, rows: Sequence[Row]) -> None:
    """What the matrix counts though not all checks of it were selected."""
    parts = []
    for row in rows:
        if left_out := row["not_selected"]:
            selected = len({check["test"] for check in row["checks"]})
            parts.append(f"{row['id']} {selected} of {selected + left_out}")
    if parts:
        out.write_line("")
        text = f"checks that were selected: {', '.join(parts)}"
        for line in textwrap.wrap(
            f"{'IN PART':<9}{text}", _WIDTH, subsequent_indent=_INDENT, break_on_hyphens=False
        ):
            out.write_line(line, yellow=True)


def _write_group(out: Writer, verdict: Verdict, reason: str, rows: Sequence[Row]) -> None:
    """Many requirements with one and the same reason: the reason once, and their ids."""
    _write_heading(out, verdict, f"{len(rows)} requirements: {_shorten(reason)}")
    ids = " ".join(row["id"] for row in rows)
    for line in textwrap.wrap(ids, _WIDTH - len(_INDENT)):
        out.write_line(_INDENT + line)


def _write_requirement(out: Writer, row: Row) -> None:
    heading = f"{row['id']} {row['level']:<6} {_shorten(row['sentence'])}"
    _write_heading(out, view.verdict_of(row), heading)
    check = view.decisive_check(row)
    if row["reason"].strip():
        name = check["test"].rpartition("::")[2] if view.verdict_of(check).is_red else ""
        text = f"{name}: {first_line(row['reason'])}".removeprefix(": ")
        out.write_line(_INDENT + _shorten(text))
    if check["expected"]:
        out.write_line(f"{_INDENT}  expected  {_shorten(check['expected'])}")
        out.write_line(f"{_INDENT}  actual    {_shorten(check['actual'])}")


def _write_heading(out: Writer, verdict: Verdict, text: str) -> None:
    red = verdict.is_red
    out.write_line(f"{verdict.value:<9}{text}", red=red, yellow=not red)


def _shorten(text: str) -> str:
    return cut(" ".join(text.split()), _WIDTH + 60)
