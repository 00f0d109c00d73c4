"""Real servers with tiny models: a Triton with a Python model boots in a second or two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_servers import Launch

from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.process import ProcessLauncher
from pytest_vllm_triton.runtime import Runtime, create_runtime


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return create_runtime(progress=print)


@pytest.fixture
def launcher(runtime: Runtime, tmp_path: Path) -> ProcessLauncher:
    return ProcessLauncher(
        runtime.tritonserver, runtime.backends, runtime.environment(), tmp_path / "servers"
    )


@pytest.fixture
def backend_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "backend"
    folder.mkdir()
    (folder / "model.py").write_text("# a stand-in\n")
    return folder


@pytest.fixture
def launch(launcher: ProcessLauncher, backend_dir: Path) -> Iterator[Launch]:
    """Launch a server of these models; whatever it is, it is gone after the test."""
    handles: list[ServerHandle] = []

    def start(*models: ModelSpec, timeout: float = 60.0, **fields: object) -> ServerHandle:
        spec = ServerSpec(models, backend_dir, **fields)  # type: ignore[arg-type]
        handles.append(launcher.launch(spec, timeout=timeout))
        return handles[-1]

    yield start
    for handle in handles:
        handle.kill()


@pytest.fixture
def kill_later() -> Iterator[list[int]]:
    """Process ids that must not outlive the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
