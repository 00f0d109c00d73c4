"""The report as Markdown for the summary page of a CI job: short, the verdict first.

GitHub takes a megabyte of it and shows no page of its own, so that long texts are cut here; the
JSON and the HTML report have them whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_vllm_triton.report import view
from pytest_vllm_triton.report.view import Row
from pytest_vllm_triton.texts import cut, cut_start
from pytest_vllm_triton.verdicts import Verdict

_MAX_DETAILED = 40
_MAX_TEXT = 1_500
_MAX_EXCHANGES = 4
_MAX_LOG_LINES = 25

_ICONS: Mapping[Verdict, str] = {
    Verdict.PASS: "✅",
    Verdict.FAIL: "❌",
    Verdict.ERROR: "💥",
    Verdict.XPASS: "♻️",
    Verdict.XFAIL: "⚠️",
    Verdict.UNTESTED: "❔",
    Verdict.NOT_APPLICABLE: "➖",
}


def to_markdown(document: Mapping[str, Any]) -> str:
    """The document as GitHub-flavoured Markdown."""
    parts = [
        _head(document),
        _counts(document),
        _to_do(document),
        _failures(view.red_rows(document)),
        _not_decided(document),
        _environment(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def inline(text: str) -> str:
    """Plain text in one line, whose code spans stay; nothing else in it is markup."""
    text = " ".join(view.printable(text).split())
    parts = re.split(r"(`[^`]*`)", text)
    # Odd parts are code spans. A pipe ends a table's cell even there, unless it is escaped.
    return "".join(
        (part if index % 2 else _escape(part)).replace("|", r"\|")
        for index, part in enumerate(parts)
    )


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # "@name" would notify people and "#1" would link; a zero-width space prevents both.
    text = re.sub(r"([@#])(?=\w)", "\\1\u200b", text)
    return re.sub(r"([\\*_\[\]~`])", r"\\\1", text)


def block(text: str) -> str:
    """A code block, whatever the text contains."""
    text = view.printable(text).strip("\n")
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _head(document: Mapping[str, Any]) -> str:
    icon = "✅" if document["conformant"] else "❌"
    return f"## {icon} {inline(document['verdict'])}"


def _counts(document: Mapping[str, Any]) -> str:
    rows = document["requirements"]
    shown = [v for v in view.SHOWN if document["totals"].get(v.value)]
    if not shown:
        return ""
    lines = [
        "| level | " + " | ".join(f"{_ICONS[v]} {v.value}" for v in shown) + " |",
        "|---|" + "--:|" * len(shown),
    ]
    for level in view.levels(document):
        counts = view.cell([r for r in rows if r["level"] == level.value]).counts
        lines.append(f"| {level.value} | " + " | ".join(str(counts[v]) for v in shown) + " |")
    return "\n".join(lines)


def _to_do(document: Mapping[str, Any]) -> str:
    lines = []
    for verdict in Verdict:
        rows = view.rows_with(document, verdict)
        if verdict.is_red and rows:
            ids = _ids(rows)
            lines.append(
                f"- **{len(rows)} {verdict.value}** ({ids}). {inline(view.ADVICE[verdict])}"
            )
    for entry in document.get("unmet", ()):
        lines.append(
            f"- **{inline(entry['required'])} is required and was not decided.** "
            f"{inline(entry['reason'])}"
        )
    return "### What to do\n\n" + "\n".join(lines) if lines else ""


def _ids(rows: Sequence[Row], most: int = 12) -> str:
    ids = ", ".join(row["id"] for row in rows[:most])
    return ids if len(rows) <= most else f"{ids} and {len(rows) - most} more"


def _failures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    parts = ["### What failed", *(_failure(row) for row in rows[:_MAX_DETAILED])]
    if rest := rows[_MAX_DETAILED:]:
        parts.append(f"… and {len(rest)} more: {_ids(rest, most=200)}.")
    return "\n\n".join(parts)


def _failure(row: Row) -> str:
    verdict = view.verdict_of(row)
    check = view.decisive_check(row)
    title = f"**{_ICONS[verdict]} {verdict.value} {row['id']} ({row['level']})**"
    parts = [f"{title} {inline(row['sentence'])}"]
    if check["expected"] or check["actual"]:
        parts.append(f"Seen in {inline(view.seen_in(row))}: {inline(_cut(check['reason']))}")
        parts.append(
            block(f"expected  {_cut(check['expected'])}\nactual    {_cut(check['actual'])}")
        )
    elif row["reason"].strip():
        parts.append(block(_cut(row["reason"])))
    parts.append(_details(row, check))
    return "\n\n".join(parts)


def _details(row: Row, check: Mapping[str, Any]) -> str:
    red = [c["test"] for c in row["checks"] if Verdict(c["verdict"]) is not Verdict.PASS]
    parts = ["<details><summary>Source, requests and server log</summary>"]
    parts.append(f"Source: {inline(row['source'])}")
    parts.append("Checks:\n" + block("\n".join(red or [check["test"]])))
    if exchanges := check["exchanges"]:
        lines = [
            f"> {_cut(e['request'])}\n< {_cut(e['response'])}  ({view.seconds(e['seconds'])})"
            for e in exchanges[-_MAX_EXCHANGES:]
        ]
        earlier = len(exchanges) + check.get("exchanges_left_out", 0) - len(lines)
        if earlier:
            lines.insert(0, f"({earlier} earlier exchanges are not shown)")
        parts.append("Requests (>) and responses (<):\n" + block("\n".join(lines)))
    if log := check["server_log"].strip():
        tail = log.splitlines()[-_MAX_LOG_LINES:]
        parts.append("End of the server's log:\n" + block(cut_start("\n".join(tail), _MAX_TEXT)))
    parts.append("</details>")
    return "\n\n".join(parts)


def _cut(text: str) -> str:
    return cut(text, _MAX_TEXT)


def _not_decided(document: Mapping[str, Any]) -> str:
    parts = []
    for verdict in (Verdict.UNTESTED, Verdict.XFAIL):
        rows = view.rows_with(document, verdict)
        if rows:
            lines = [
                f"- {_ids(same)}: {inline(reason or 'no reason given')}"
                for reason, same in view.by_reason(rows).items()
            ]
            title = f"{len(rows)} {verdict.value}: {view.ADVICE[verdict]}"
            body = "\n".join(lines)
            parts.append(
                f"<details><summary>{_ICONS[verdict]} {title}</summary>\n\n{body}\n\n</details>"
            )
    return "\n\n".join(parts)


def _environment(document: Mapping[str, Any]) -> str:
    facts = {**document["environment"], "suite": document["tool"], "created": document["created"]}
    lines = [f"| {inline(name)} | {inline(value)} |" for name, value in facts.items()]
    table = "\n".join(["| | |", "|---|---|", *lines])
    return f"<details><summary>What was tested</summary>\n\n{table}\n\n</details>"
