"""Keys under which the plugin keeps its state on pytest's own objects, instead of in globals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vllm_triton.options.settings import Settings
    from pytest_vllm_triton.servers.harness import Harness
    from pytest_vllm_triton.session.collected_checks import CollectedChecks
    from pytest_vllm_triton.session.judge import Judge
    from pytest_vllm_triton.transcript import Transcript

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
HARNESS: pytest.StashKey[Harness] = pytest.StashKey()
COLLECTED_CHECKS: pytest.StashKey[CollectedChecks] = pytest.StashKey()
JUDGE: pytest.StashKey[Judge] = pytest.StashKey()
#: Gives the log of the experiment whose facts this check read; it was written before the check
#: began. Set by conformance/conftest.py, read by ServerSession._log_since.
EARLIER_LOG: pytest.StashKey[Callable[[], str]] = pytest.StashKey()
TRANSCRIPT: pytest.StashKey[Transcript] = pytest.StashKey()
