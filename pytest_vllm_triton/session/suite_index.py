"""Which tests of the suite check a requirement, told from their text."""

from __future__ import annotations

import ast
from collections import defaultdict

from pytest_vllm_triton import assets


def tests_by_requirement() -> dict[str, list[str]]:
    """Names of the suite's tests by requirement id, read from the sources without running them."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(assets.suite_dir().glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for key in _requirements_of(node):
                    found[key].append(f"{path.name}::{node.name}")
    return dict(found)


def _requirements_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The arguments of its ``pytest.mark.requirement`` markers."""
    return [
        argument.value
        for marker in function.decorator_list
        if isinstance(marker, ast.Call)
        and isinstance(marker.func, ast.Attribute)
        and marker.func.attr == "requirement"
        for argument in marker.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
