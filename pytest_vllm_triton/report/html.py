"""The report as one self-contained HTML page: it loads nothing, and reads without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pytest_vllm_triton.report import view
from pytest_vllm_triton.verdicts import Verdict

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(document: Mapping[str, Any]) -> str:
    """The document as a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    environment.filters["printable"] = view.printable
    environment.filters["seconds"] = view.seconds
    environment.filters["slug"] = slug
    rows, totals = document["requirements"], document["totals"]
    return environment.get_template("report.html.jinja").render(
        document=document,
        levels=view.levels(document),
        matrix=view.matrix(document),
        totals=[(v, totals[v.value]) for v in view.SHOWN if totals[v.value]],
        by_level=[
            (level, view.cell([r for r in rows if r["level"] == level.value]))
            for level in view.levels(document)
        ],
        red=view.red_rows(document),
        untested=view.by_reason(view.rows_with(document, Verdict.UNTESTED)),
        groups=_groups(document),
        decisive_check=view.decisive_check,
        seen_in=view.seen_in,
        verdict_of=view.verdict_of,
        advice=view.ADVICE,
        Verdict=Verdict,
    )


def _groups(document: Mapping[str, Any]) -> list[tuple[str, str, list[view.Row]]]:
    """(group, its name, its requirements)."""
    names = document.get("groups", {})
    result: dict[str, list[view.Row]] = {}
    for row in document["requirements"]:
        result.setdefault(row["group"], []).append(row)
    return [(group, names.get(group, ""), rows) for group, rows in result.items()]


def marked(text: str) -> Markup:
    """Plain text whose `code spans` are shown as such and whose addresses are links."""
    parts = re.split(r"`([^`]*)`", view.printable(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else _linked(part)
        for index, part in enumerate(parts)
    )


def _linked(text: str) -> Markup:
    parts = re.split(r"(https?://[^\s()<>\"']+)", text)
    return Markup("").join(
        Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def slug(verdict: Verdict) -> str:
    """The verdict as a CSS class."""
    return re.sub(r"\W", "", verdict.value.lower())
