"""The built wheel: what is in it, and that it works in an environment and a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from plugin_helpers import environment

from pytest_vllm_triton import assets

CHECKOUT = assets.suite_dir().parent
SHIPPED = (
    "pytest_vllm_triton/py.typed",
    "pytest_vllm_triton/requirements.toml",
    "pytest_vllm_triton/report/schema-1.json",
    "pytest_vllm_triton/report/templates/report.html.jinja",
    "pytest_vllm_triton/report/templates/report.css",
    "pytest_vllm_triton/report/templates/report.js",
    "pytest_vllm_triton/supervision/__main__.py",
    "pytest_vllm_triton/supervision/standalone/supervisor.py",
    "pytest_vllm_triton/_assets/fixtures/known-failures/upstream.toml",
    "pytest_vllm_triton/conformance/conftest.py",
    "pytest_vllm_triton/conformance/test_generate.py",
    "pytest_vllm_triton/_assets/backend/model.py",
    "pytest_vllm_triton/_assets/fixtures/model_repository/vllm_model/config.pbtxt",
    "pytest_vllm_triton/_assets/fixtures/model_repository/vllm_model/1/model.json",
)

pytestmark = pytest.mark.skipif(assets.is_installed(), reason="needs a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are those of the developers'."""
    folder = tmp_path_factory.mktemp("project") / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"),
            *("--no-deps", "--no-index", str(wheel)),
        ],
        check=True,
        capture_output=True,
        env=environment(PIP_FIND_LINKS=""),
    )
    (site,) = folder.glob("lib/python*/site-packages")
    # A .pth line that is a folder only adds it: the checkout's own link in there is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_content(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in SHIPPED:
        assert name in names
    assert {name.partition("/")[0] for name in names} == {
        "pytest_vllm_triton",
        wheel.name.split("-py3")[0] + ".dist-info",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    strange = ("__pycache__", ".pyc", "_cache", "/tests/", ".venv", ".git")
    assert [name for name in names if any(part in name for part in strange)] == []


def test_whole_suite_and_backend_are_in(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("conformance", "conformance"), ("backend", "_assets/backend")):
        tracked = subprocess.run(
            ["git", "ls-files", folder], cwd=CHECKOUT, check=True, capture_output=True, text=True
        ).stdout.split()
        assert tracked
        shipped = {path.replace(folder, f"pytest_vllm_triton/{place}", 1) for path in tracked}
        assert shipped - names == set()


def run(python: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *args],
        cwd=cwd,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_suite_runs_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    where = run(python, tmp_path, "-c", "import pytest_vllm_triton as p; print(p.__file__)").stdout
    assert where.startswith(str(python.parent.parent))
    done = run(
        python, tmp_path, "-m", "pytest", "--vllm-model=known-answer", "--collect-only", "-q"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_generate.py::test_first_inference_of_the_readme" in done.stdout.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_environment_inside_the_folder(python: Path) -> None:
    """``python -m venv .venv`` in the project's folder: pytest itself does not look in there."""
    folder = python.parent.parent.parent
    done = run(python, folder, "-m", "pytest", "--vllm-model=known-answer", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_generate.py::test_first_inference_of_the_readme" in done.stdout.splitlines()


def test_pyargs(python: Path, tmp_path: Path) -> None:
    done = run(
        *(python, tmp_path, "-m", "pytest", "--collect-only", "-q"),
        *("--pyargs", "pytest_vllm_triton.conformance"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_generate.py::test_first_inference_of_the_readme" in done.stdout.splitlines()


def test_served_backend_is_the_packaged_one(python: Path, tmp_path: Path) -> None:
    code = "from pytest_vllm_triton import assets as a; print(a.backend_dir()); a.fixtures_dir()"
    folder = Path(run(python, tmp_path, "-c", code).stdout.strip())
    assert (folder / "model.py").is_file()
    assert str(folder).startswith(str(python.parent.parent))
