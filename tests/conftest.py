"""What all tests of this project share."""

from __future__ import annotations

import os

import pytest

from pytest_vllm_triton.options.environment_names import ENV_PREFIXES


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own environment must not decide what the tests see; its caches may."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIXES) and name != "PYTEST_VLLM_TRITON_HOME":
            monkeypatch.delenv(name)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
