"""A server is started again where the load of its model failed by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers import attempts
from pytest_vllm_triton.launchers.attach import AttachedHandle
from pytest_vllm_triton.launchers.base import Endpoints, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.readiness import LoadStumbled

SPEC = ServerSpec((), Path("backend"))
SERVER = AttachedHandle(endpoints=Endpoints("http://localhost:1", "localhost:2", None), owned=False)


class Stumbling:
    """A launcher whose first launches fail."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = [*failures]

    def launch(self, spec: ServerSpec, **_: Any) -> ServerHandle:
        assert spec is SPEC
        if self.failures:
            raise self.failures.pop(0)
        return SERVER

    def close(self) -> None:
        pass


def test_started_again_until_it_goes_well() -> None:
    told: list[str] = []
    stumbled = [LoadStumbled("no sign of life") for _ in range(attempts.ATTEMPTS - 1)]
    launcher = Stumbling(*stumbled)
    assert attempts.launch(launcher, SPEC, timeout=1, progress=told.append) is SERVER
    assert len(told) == len(stumbled)


def test_not_for_ever() -> None:
    last = LoadStumbled("the last")
    stumbled = [LoadStumbled("no sign of life") for _ in range(attempts.ATTEMPTS - 1)]
    with pytest.raises(LoadStumbled) as caught:
        attempts.launch(Stumbling(*stumbled, last), SPEC, timeout=1)
    assert caught.value is last


def test_not_for_a_failure_of_the_backend() -> None:
    launcher = Stumbling(ServerFailed("no such model"), ServerFailed("asked again"))
    with pytest.raises(ServerFailed, match="no such model"):
        attempts.launch(launcher, SPEC, timeout=1)
