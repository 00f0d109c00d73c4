"""The formats of a report, by the suffix of its file.

Each renderer takes the document (see document.py) and returns text. They are imported when they are
used: this module is imported in every pytest run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.suggest import did_you_mean

Document = Mapping[str, Any]


def _json(document: Document) -> str:
    from pytest_vllm_triton.report.document import to_json

    return to_json(document)


def _markdown(document: Document) -> str:
    from pytest_vllm_triton.report.markdown import to_markdown

    return to_markdown(document)


def _html(document: Document) -> str:
    from pytest_vllm_triton.report.html import to_html

    return to_html(document)


RENDERERS: Mapping[str, Callable[[Document], str]] = {
    ".json": _json,
    ".md": _markdown,
    ".html": _html,
}


def check_suffix(path: Path) -> None:
    """Refuse a path whose suffix names no format.

    Raises:
        UserError: says which there are.
    """
    if path.suffix not in RENDERERS:
        hint = did_you_mean(path.suffix, RENDERERS)
        raise UserError(
            f"{path.name!r}: the suffix says the format; it is one of {', '.join(RENDERERS)}.{hint}"
        )


def write_report(document: Document, path: Path) -> None:
    """Write the report in the format of its suffix; its folder is made.

    Raises:
        UserError: the suffix names no format.
        OSError: it cannot be written.
    """
    check_suffix(path)
    text = RENDERERS[path.suffix](document)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
