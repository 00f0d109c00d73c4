"""What a mistyped word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'process'?"`` when one of the choices is close, else ``""``."""
    close = difflib.get_close_matches(given, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def nearest_sibling(path: Path) -> str:
    """Suggest an existing entry for a mistyped path; none where its folder cannot be listed."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / close[0])!r}?" if close else ""
