"""The environment variables that are options, and those that were meant to be."""

from __future__ import annotations

import os

import pytest

from pytest_vllm_triton.options.table import OPTIONS
from pytest_vllm_triton.paths import HOME_VARIABLE
from pytest_vllm_triton.suggest import did_you_mean

# A variable that begins like this is one of ours, or a mistyped one.
ENV_PREFIXES = ("PYTEST_VLLM_", "PYTEST_TRITON_", "PYTEST_CONFORMANCE_", "PYTEST_KNOWN_FAIL")


def check_environment_names() -> None:
    """A mistyped variable must not be ignored in silence: a gate would check the wrong thing.

    Raises:
        pytest.UsageError: there is one; it says what was probably meant.
    """
    reserved = [*(option.env for option in OPTIONS), HOME_VARIABLE]
    for name in os.environ:
        if name.startswith(ENV_PREFIXES) and name not in reserved:
            raise pytest.UsageError(
                f"unknown environment variable {name}.{did_you_mean(name, reserved)}"
            )
