"""What is known of servers before any of what they are made from is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_triton import assets
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session.state import SETTINGS


def provision(pytester: pytest.Pytester, *options: str) -> Provision:
    config = pytester.parseconfigure(*options)
    config._ensure_unconfigure()
    return Provision(config.stash[SETTINGS])


@pytest.mark.parametrize(
    ("options", "has_python"),
    [
        (["--triton-launcher=process"], True),
        (["--triton-launcher=process", "--triton-server-bin=tritonserver"], False),
        (["--triton-image=image"], True),
        (["--triton-url=http://elsewhere:8000"], False),
    ],
    ids=["embedded", "binary", "container", "attach"],
)
def test_whether_the_servers_python_runs_scripts(
    pytester: pytest.Pytester,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    has_python: bool,
) -> None:
    monkeypatch.setenv("PYTEST_VLLM_TRITON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no tritonserver on it
    Path("tritonserver").touch(0o755)
    assert provision(pytester, *options).has_server_python is has_python
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("has_client", [False, True])
def test_whose_client_is_checked(pytester: pytest.Pytester, has_client: bool) -> None:
    """NVIDIA's lies beside its backend; a backend without one must not pass for its client too."""
    (pytester.path / "src").mkdir()
    (pytester.path / "src" / "model.py").touch()
    client = pytester.path / "samples" / "client.py"
    if has_client:
        client.parent.mkdir()
        client.touch()
    made = provision(pytester, f"--triton-backend-dir={pytester.path / 'src'}")
    none = "this package's (none in ../samples of the backend)"
    assert made.describe()["client"] == (str(client) if has_client else none)
    assert made.samples_dir == (client.parent if has_client else assets.samples_dir())


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--triton-backend-dir=image", "--triton-image=image"],
        ["--triton-url=http://elsewhere:8000"],
    ],
    ids=["own", "image", "attach"],
)
def test_this_packages_client_is_checked(pytester: pytest.Pytester, options: list[str]) -> None:
    assert provision(pytester, *options).describe()["client"] == "this package's"


def test_servers_need_a_folder(pytester: pytest.Pytester) -> None:
    with pytest.raises(RuntimeError, match="without a folder"):
        _ = provision(pytester).work_dir
