"""What the plugin's tests share besides fixtures."""

from __future__ import annotations

import os
from typing import Any

from pytest_vllm_triton.paths import HOME_VARIABLE, cache_home

# pytester changes $HOME; the server runtime and the checkpoints are in the one before it.
CACHES = str(cache_home())

Report = dict[str, Any]

# The head of every suite in miniature.
PREAMBLE = """
import pytest
from pytest_vllm_triton import expect
from pytest_vllm_triton.verdicts import not_applicable, untested
requirement = pytest.mark.requirement
"""


def verdicts(report: Report) -> dict[str, str]:
    """Requirement id -> verdict."""
    return {row["id"]: row["verdict"] for row in report["requirements"]}


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with some changes, for a subprocess."""
    return {**os.environ, HOME_VARIABLE: CACHES, **changes}
