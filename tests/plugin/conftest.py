"""Suites in miniature, run by pytester with the plugin as it is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# pytester forgets what a run inside this process imported, and NumPy cannot be imported twice.
import pytest_vllm_triton.known_answer  # noqa: F401
from pytest_vllm_triton.paths import HOME_VARIABLE, cache_home

# pytester changes $HOME; the server runtime and the checkpoints are in the one before it.
CACHES = str(cache_home())


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, CACHES)


Report = dict[str, Any]


@pytest.fixture
def judged(pytester: pytest.Pytester) -> Callable[..., tuple[pytest.RunResult, Report]]:
    """Run tests that carry requirements; the result and the report that they gave."""

    def run(source: str, *args: str) -> tuple[pytest.RunResult, Report]:
        pytester.makepyfile(PREAMBLE + source)
        result = pytester.runpytest("--conformance-report=report.json", *args, str(pytester.path))
        return result, json.loads((pytester.path / "report.json").read_text(encoding="utf-8"))

    return run


PREAMBLE = """
import pytest
from pytest_vllm_triton import expect
from pytest_vllm_triton.verdicts import not_applicable, untested
requirement = pytest.mark.requirement
"""


def verdicts(report: Report) -> dict[str, str]:
    return {row["id"]: row["verdict"] for row in report["requirements"]}


@pytest.fixture
def lying_server(tmp_path: Path) -> Path:
    """A "tritonserver" that prints what it was given and ends: shows which options arrive where."""
    (tmp_path / "lie" / "bin").mkdir(parents=True)
    (tmp_path / "lie" / "backends" / "python").mkdir(parents=True)
    binary = tmp_path / "lie" / "bin" / "tritonserver"
    binary.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in\n'
        "  --model-repository=*) cat ${word#*=}/*/config.pbtxt ${word#*=}/*/1/model.json;;\n"
        "  --backend-directory=*) tail -n 1 ${word#*=}/vllm/model.py;;\n"
        "esac; done\n"
        'echo "arguments: $@"\n'
        'if [ -n "$LIE_SLEEP" ]; then exec sleep "$LIE_SLEEP"; fi\n'
        "exit 3\n"
    )
    binary.chmod(0o755)
    return binary


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with some changes, for a subprocess."""
    return {**os.environ, HOME_VARIABLE: CACHES, **changes}
