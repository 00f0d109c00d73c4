"""Experiments and checks name facts by the same words: a mistyped one would blame the backend."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import conformance
from conformance.conftest import EXPERIMENTS as FIXTURES

FOLDER = Path(conformance.__file__).parent
EXPERIMENTS = sorted(FOLDER.glob("experiments/*.py"))
CHECKS = sorted(FOLDER.glob("test_*.py"))
# What holds an experiment's facts: the fixtures' names and the usual one.
HOLDERS = {"seen", *FIXTURES}


def words(key: ast.expr) -> str | None:
    """The text of a key, with "*" for what an f-string fills in; None where it is a variable."""
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    if isinstance(key, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "*" for part in key.values)
        return "".join(map(str, parts))
    return None


def holds_facts(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in HOLDERS


def subscripts(tree: ast.AST, context: type[ast.expr_context]) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        is_one = isinstance(node, ast.Subscript) and isinstance(node.ctx, context)
        if is_one and holds_facts(node.value):
            yield node.slice


def looks(tree: ast.AST) -> Iterator[ast.expr]:
    """The first arguments of `Seen.look`."""
    for node in ast.walk(tree):
        is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_method and node.func.attr == "look" and holds_facts(node.func.value):
            yield node.args[0]


def written() -> set[str]:
    keys: list[ast.expr] = []
    for file in EXPERIMENTS:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        keys += [*subscripts(tree, ast.Store), *looks(tree)]
    return {text for key in keys if (text := words(key)) is not None}


def read() -> list[tuple[str, str]]:
    """Where a fact is read, and its words."""
    return [
        (f"{file.name}:{key.lineno}", text)
        for file in EXPERIMENTS + CHECKS
        for key in subscripts(ast.parse(file.read_text(encoding="utf-8")), ast.Load)
        if (text := words(key)) is not None
    ]


WRITTEN = written()


@pytest.mark.parametrize(("place", "text"), read())
def test_fact_is_written_by_an_experiment(place: str, text: str) -> None:
    assert any(fnmatchcase(text, one) or fnmatchcase(one, text) for one in WRITTEN)


def test_all_experiments_are_looked_at() -> None:
    assert len(WRITTEN) > 100
