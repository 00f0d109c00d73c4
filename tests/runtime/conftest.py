"""Runtimes made of tiny wheels, in homes of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_wheels
import pytest

from pytest_vllm_triton.paths import HOME_VARIABLE
from pytest_vllm_triton.runtime.source import Index


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for runtimes, so that no test touches the user's."""
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.setattr(Index, "disk_gib", 0.1)
    return folder


@pytest.fixture
def no_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as on a machine on which nobody has configured it."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels") / "all"
    fake_wheels.write_all(folder)
    return folder


@pytest.fixture
def cuda_wheels(
    wheels: Path, no_pip_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """pip finds the tiny wheels, those for CUDA too, and nothing else."""
    folder = tmp_path / "cuda-wheels"
    shutil.copytree(wheels, folder)
    fake_wheels.write_cuda(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def offline_wheels(wheels: Path, no_pip_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds the tiny wheels, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels
