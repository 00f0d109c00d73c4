"""What terminal, page and job summary show of a report's document: order, counts, evidence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_triton.requirements import Level
from pytest_vllm_triton.texts import first_line
from pytest_vllm_triton.verdicts import Verdict

Row = Mapping[str, Any]

#: The verdicts as people look for them: what passed, then from the worst on.
SHOWN = (Verdict.PASS, *(verdict for verdict in Verdict if verdict is not Verdict.PASS))

#: What to do about a requirement with this verdict.
ADVICE: Mapping[Verdict, str] = {
    Verdict.FAIL: "The backend violates the requirement: fix it, or list it with --known-failures "
    "if it is to ship as it is.",
    Verdict.ERROR: "The server did not start, or a check could not be carried out, which says "
    "nothing good of the backend: read the error and the server's log, then run again.",
    Verdict.XPASS: "It is listed as a known failure but passes: remove its entry from the list.",
    Verdict.XFAIL: "A known failure from the list; nothing to do.",
    Verdict.UNTESTED: "This host, launcher or model cannot show it: run on one that can.",
    Verdict.NOT_APPLICABLE: "Does not apply to what was tested; nothing to do.",
    Verdict.PASS: "",
}

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Cell:
    """Requirements of one group and level, or of a whole row or column of the matrix."""

    counts: Counter[Verdict]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def passed(self) -> int:
        return self.counts[Verdict.PASS]

    @property
    def worst(self) -> Verdict | None:
        """The verdict that decides how the cell looks; None for an empty cell."""
        return next((v for v in Verdict if self.counts[v]), None)

    @property
    def others(self) -> list[tuple[Verdict, int]]:
        """How many did not pass, by verdict, the worst first."""
        return [(v, self.counts[v]) for v in Verdict if self.counts[v] and v is not Verdict.PASS]


@dataclass(frozen=True)
class MatrixRow:
    """One group's cells, by level, and all its levels together."""

    group: str
    name: str
    cells: Sequence[Cell]
    all: Cell


def verdict_of(row: Row) -> Verdict:
    """The verdict of a requirement's row, or of one of its checks."""
    return Verdict(row["verdict"])


def levels(document: Mapping[str, Any]) -> list[Level]:
    """The levels that occur, the most binding first."""
    found = {row["level"] for row in document["requirements"]}
    return [level for level in Level if level.value in found]


def cell(rows: Sequence[Row]) -> Cell:
    return Cell(Counter(verdict_of(row) for row in rows))


def matrix(document: Mapping[str, Any]) -> list[MatrixRow]:
    """Groups by level; the last row, whose group is "", is that of all groups."""
    rows = document["requirements"]
    names = document.get("groups", {})
    groups = dict.fromkeys(row["group"] for row in rows)
    result = [
        _matrix_row(document, g, names.get(g, ""), [r for r in rows if r["group"] == g])
        for g in groups
    ]
    return [*result, _matrix_row(document, "", "", rows)]


def _matrix_row(
    document: Mapping[str, Any], group: str, name: str, rows: Sequence[Row]
) -> MatrixRow:
    by_level = [cell([r for r in rows if r["level"] == level.value]) for level in levels(document)]
    return MatrixRow(group, name, by_level, cell(rows))


def red_rows(document: Mapping[str, Any]) -> list[Row]:
    """What makes the run red: the most binding level first, then the worst verdict."""
    order, ranks = [level.value for level in Level], list(Verdict)
    rows = [row for row in document["requirements"] if verdict_of(row).is_red]
    return sorted(rows, key=lambda r: (order.index(r["level"]), ranks.index(verdict_of(r))))


def rows_with(document: Mapping[str, Any], *verdicts: Verdict) -> list[Row]:
    return [row for row in document["requirements"] if verdict_of(row) in verdicts]


def by_reason(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Requirements that share a reason (its first line) together."""
    result: dict[str, list[Row]] = {}
    for row in rows:
        result.setdefault(first_line(row["reason"]), []).append(row)
    return result


def decisive_check(row: Row) -> Mapping[str, Any]:
    """The check that shows why the requirement has its verdict: the first that has it too.

    If none has, the worst. With a list of known failures a requirement may have another verdict
    than all its checks: XPASS where they pass, or XFAIL where a check decides one more requirement,
    which is not listed.
    """
    order = list(Verdict)
    checks: Sequence[Mapping[str, Any]] = row["checks"]
    alike = [check for check in checks if verdict_of(check) is verdict_of(row)]
    return min(alike or checks, key=lambda check: order.index(verdict_of(check)))


def seen_in(row: Row) -> str:
    """The name of the decisive check, and of how many checks how many failed."""
    name = str(decisive_check(row)["test"]).rpartition("::")[2]
    failed = sum(verdict_of(check).is_red for check in row["checks"])
    total = len(row["checks"])
    return f"{name} ({failed} of {total} checks failed)" if failed and total > 1 else name


def printable(text: str) -> str:
    """The text without terminal colours, its control characters spelled out."""
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def seconds(value: float) -> str:
    """A duration, as short as it is still useful."""
    if value >= 60:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
