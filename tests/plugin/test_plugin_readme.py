"""The README quotes what the plugin says, so that people find their message in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest_vllm_triton

SOURCES = Path(pytest_vllm_triton.__file__).parent
README = Path(__file__).parents[2] / "README.md"


def texts() -> list[str]:
    """All texts in the plugin's sources, with … for what is filled in."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_quoted_messages_exist() -> None:
    section = README.read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    quoted = re.findall(r"^\| \*(.+?)\*", section.partition("\n## ")[0], re.MULTILINE)
    assert len(quoted) >= 3
    said = texts()
    missing = [quote for quote in quoted if not any(quote.strip("… ") in text for text in said)]
    assert not missing
