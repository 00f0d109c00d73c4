"""Texts made short for people."""

from __future__ import annotations


def first_line(text: str, otherwise: str = "") -> str:
    """The first line that holds something; ``otherwise`` if none does."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else otherwise


def cut(text: str, most: int) -> str:
    """At most so many characters from its start, the last one "…" where some are left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def cut_start(text: str, most: int) -> str:
    """At most so many characters from its end, the first one "…" where some are left out."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"
