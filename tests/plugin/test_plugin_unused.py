"""Pytest runs that have nothing to do with Triton must not notice that the plugin is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import environment

HEAVY = (
    "docker",
    "google.protobuf",
    "grpc",
    "httpx",
    "huggingface_hub",
    "jinja2",
    "jsonschema",
    "numpy",
    "psutil",
    "rich",
    "safetensors",
    "testcontainers",
    "tokenizers",
    "tritonclient",
    "pytest_vllm_triton.clients",
    "pytest_vllm_triton.servers.harness",
    "pytest_vllm_triton.launchers",
    "pytest_vllm_triton.report.document",
    "pytest_vllm_triton.report.html",
    "pytest_vllm_triton.report.markdown",
    "pytest_vllm_triton.runtime",
    "pytest_vllm_triton.supervision",
)
TRIVIAL = """
import atexit, json, sys
atexit.register(lambda: json.dump(sorted(sys.modules), open("../modules.json", "w")))
def test_it(): pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project with one test."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "test_own.py").write_text(TRIVIAL)
    return folder


def run(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # Without hypothesis's own plugin, which the developers' environment has.
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-p", "no:anyio", *args],
        cwd=project,
        env=environment(PYTHONDONTWRITEBYTECODE="1", HOME=str(project.parent / "home")),
        text=True,
        capture_output=True,
        timeout=120,
    )


def loaded(project: Path) -> set[str]:
    return set(json.loads((project.parent / "modules.json").read_text()))


def test_nothing_is_imported_written_or_said(project: Path) -> None:
    done = run(project, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    modules = loaded(project)
    assert "pytest_vllm_triton.plugin" in modules
    assert [name for name in HEAVY if name in modules] == []
    assert [path.name for path in project.iterdir()] == ["test_own.py"]
    assert not (project.parent / "home").exists()
    assert [line for line in done.stdout.splitlines() if line.startswith("vllm-triton")] == []
    assert "conformance" not in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize(
    "args",
    [
        ["--strict-config", "--strict-markers", "-W", "error"],
        ["--import-mode=importlib", "-W", "error"],
        ["--asyncio-mode=auto", "-W", "error"],
        ["--asyncio-mode=strict", "-W", "error"],
        ["-p", "no:asyncio"],
        ["-n2"],
        ["-o", "strict=true", "-W", "error"],
        ["-p", "no:terminal"],
        ["-p", "pytest_vllm_triton"],
    ],
    ids=" ".join,
)
def test_with_settings_of_the_user(project: Path, args: list[str]) -> None:
    if "strict=true" in args and pytest.version_tuple < (9,):
        pytest.skip("strict came with pytest 9")
    done = run(project, *args)
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_a_variable_that_looks_like_one_of_ours(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tools may have theirs, and a mistyped one matters only where it was to act."""
    monkeypatch.setenv("PYTEST_VLLM_MODLE", "x")
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_autoload_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert run(project).returncode == 0
    assert "pytest_vllm_triton" not in loaded(project)
    assert run(project, "-p", "pytest_vllm_triton.plugin").returncode == 0
    assert "pytest_vllm_triton.plugin" in loaded(project)


def test_help_lists_the_options(project: Path) -> None:
    done = run(project, "--help")
    assert done.returncode == 0
    for text in ("--vllm-model=MODEL", "PYTEST_TRITON_URL", "triton_backend_dir (string)"):
        assert text in done.stdout
