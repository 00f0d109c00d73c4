"""Suites in miniature, run by pytester with the plugin as it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

# pytester forgets what a run inside this process imported, and NumPy cannot be imported twice.
import httpcore  # noqa: F401  (httpx knows its exceptions by identity)
import hypothesis.internal.observability  # noqa: F401  (its pytest plugin imports it each time)
import pytest
from plugin_helpers import CACHES, PREAMBLE, Report

import pytest_vllm_triton.known_answer
import pytest_vllm_triton.runtime.choice  # noqa: F401  (its accelerators are compared by identity)
from pytest_vllm_triton.paths import HOME_VARIABLE


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, CACHES)


@pytest.fixture
def judged(pytester: pytest.Pytester) -> Callable[..., tuple[pytest.RunResult, Report]]:
    """Run tests that carry requirements; the result and the report that they gave."""

    def run(source: str, *args: str) -> tuple[pytest.RunResult, Report]:
        pytester.makepyfile(PREAMBLE + source)
        result = pytester.runpytest("--conformance-report=report.json", *args, str(pytester.path))
        return result, json.loads((pytester.path / "report.json").read_text(encoding="utf-8"))

    return run


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
        'echo "token: $HF_TOKEN"\n'
        'if [ -n "$LIE_SLEEP" ]; then exec sleep "$LIE_SLEEP"; fi\n'
        "exit 3\n"
    )
    binary.chmod(0o755)
    return binary
