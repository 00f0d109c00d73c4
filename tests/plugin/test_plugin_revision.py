"""The report names the commit of the backend under test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_vllm_triton.options.values import BackendSource
from pytest_vllm_triton.servers.revision import revision


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a backend in its folder ``src``, under the tag v1."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "nobody@localhost")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.py").touch()
    for command in ("init -q", "add .", "commit -qm first", "tag v1"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_a_checkout_has_one(checkout: Path) -> None:
    assert revision(checkout / "src", "model.py") == "v1"
    (checkout / "src" / "model.py").write_text("changed = True\n")
    assert revision(checkout / "src", "model.py") == "v1 with changes"


def test_what_is_installed_inside_a_checkout_has_none(checkout: Path) -> None:
    installed = checkout / ".venv" / "backend"
    installed.mkdir(parents=True)
    (installed / "model.py").touch()
    assert revision(installed, "model.py") == ""


@pytest.mark.parametrize("path", ["", "/nowhere"], ids=["no-checkout", "no-git"])
def test_elsewhere_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "model.py").touch()
    if path:
        monkeypatch.setenv("PATH", path)
    assert revision(tmp_path, "model.py") == ""
    assert revision(tmp_path / "absent", "model.py") == ""


@pytest.mark.parametrize(
    ("option", "said"),
    [("src", "src (v1)\n"), (BackendSource.IMAGE.value, "the image's\n")],
)
def test_header_names_it(pytester: pytest.Pytester, checkout: Path, option: str, said: str) -> None:
    folder = checkout / option if option == "src" else option
    launcher = "process" if option == "src" else "container"
    result = pytester.runpytest(
        "--collect-only",
        "--vllm-model=known-answer",
        f"--triton-launcher={launcher}",
        f"--triton-backend-dir={folder}",
        pytester.makepyfile("def test_it(vllm_server): pass"),
    )
    assert said in result.stdout.str()
