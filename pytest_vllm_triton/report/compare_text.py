"""A comparison of two reports as text for a terminal, and as Markdown for a CI job's summary."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllm_triton.report import view
from pytest_vllm_triton.report.compare import Change, Comparison, Kind
from pytest_vllm_triton.report.markdown import inline
from pytest_vllm_triton.texts import cut, first_line
from pytest_vllm_triton.verdicts import Verdict

_WIDTH = 100


def to_text(comparison: Comparison) -> str:
    """For a terminal: the answer is the last line."""
    lines = [
        f"old  {comparison.old_verdict}",
        f"new  {comparison.new_verdict}",
        *(f"{name} differs: {a}  →  {b}" for name, (a, b) in comparison.differences.items()),
    ]
    for kind in Kind:
        changes = comparison.of(kind)
        if not changes:
            continue
        lines += ["", f"{kind.value} ({len(changes)})"]
        for change in changes:
            step = f"{_name(change.old)} → {_name(change.new)}"
            sentence = " ".join(change.sentence.split())
            lines.append(
                f"  {change.id} {change.level.value:<6} {step:<19} {cut(sentence, _WIDTH)}"
            )
            if reason := first_line(view.printable(change.reason)):
                lines.append(f"{'':<37}{cut(reason, _WIDTH)}")
    return "\n".join([*lines, "", headline(comparison)])


def to_markdown(comparison: Comparison) -> str:
    """For a job's summary: the answer comes first."""
    icon = "❌" if comparison.has_regressions else "✅"
    parts = [f"## {icon} {headline(comparison)}"]
    facts = {"verdict": (comparison.old_verdict, comparison.new_verdict), **comparison.differences}
    rows = [f"| {inline(n)} | {inline(a)} | {inline(b)} |" for n, (a, b) in facts.items()]
    parts.append("\n".join(["| | old | new |", "|---|---|---|", *rows]))
    for kind in Kind:
        if changes := comparison.of(kind):
            parts.append(f"### {kind.value} ({len(changes)})\n\n" + _table(changes))
    return "\n\n".join(parts) + "\n"


def headline(comparison: Comparison) -> str:
    """The answer in a sentence."""
    counts = [
        f"{len(changes)} {kind.value.lower()}"
        for kind in Kind
        if kind is not Kind.REGRESSION and (changes := comparison.of(kind))
    ]
    number = len(comparison.of(Kind.REGRESSION))
    what = {0: "No regression", 1: "1 regression"}.get(number, f"{number} regressions")
    return f"{what}: {', '.join(counts) or 'nothing else changed'}."


def _table(changes: Sequence[Change]) -> str:
    rows = [
        f"| {c.id} | {c.level.value} | {_name(c.old)} → {_name(c.new)} | {inline(c.sentence)} "
        f"| {inline(cut(first_line(c.reason), 2 * _WIDTH))} |"
        for c in changes
    ]
    return "\n".join(["| id | level | verdict | requirement | reason |", "|---" * 5 + "|", *rows])


def _name(verdict: Verdict | None) -> str:
    return verdict.value if verdict else "absent"
