"""The backend as one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_triton import assets
from pytest_vllm_triton.cli import main
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.single_file_backend import bundle

MODEL = '''"""Entry."""

from __future__ import annotations

import inspect

from inner import faulty
from inner.deep import answer


def text() -> str:
    return inspect.getsource(answer) + inspect.getsource(faulty.fail)
'''
FILES = {
    "model.py": MODEL,
    "inner/__init__.py": "",
    "inner/faulty.py": "def fail():\n    raise ValueError('here \\\\ \" é')  # the line\n",
    "inner/deep/__init__.py": "",
    "inner/deep/answer.py": '"""Doc."""\n\nVALUE = r"\\d\\n"',
}


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    folder = tmp_path / "backend"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def run_alone(text: str, folder: Path, script: str) -> str:
    """What a script prints beside the bundle, in a Python that has only the bundle's folder."""
    folder.mkdir()
    (folder / "model.py").write_text(text, encoding="utf-8")
    setup = f"import sys; sys.path.insert(0, {str(folder)!r}); import model\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", setup + script], capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def test_modules_are_imported_from_the_bundle(backend: Path, tmp_path: Path) -> None:
    script = "from inner.deep import answer\nprint(answer.VALUE, answer.__doc__, answer.__file__)"
    told = run_alone(bundle(backend), tmp_path / "alone", script)
    assert told == rf"\d\n Doc. {tmp_path}/alone/model.py/inner/deep/answer.py" + "\n"


def test_tracebacks_show_the_line_of_the_bundle(backend: Path, tmp_path: Path) -> None:
    text = bundle(backend)
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "# the line" in line)
    told = run_alone(text, tmp_path / "alone", "model.faulty.fail()")
    assert f'File "{tmp_path}/alone/model.py", line {number}, in fail' in told
    assert "raise ValueError('here" in told


def test_inspect_finds_the_text_of_a_module(backend: Path, tmp_path: Path) -> None:
    script = "import inspect; print(inspect.getsource(model.answer))"
    told = run_alone(bundle(backend), tmp_path / "alone", script)
    assert told.strip() == FILES["inner/deep/answer.py"]


def test_a_copy_on_the_path_does_not_win(backend: Path, tmp_path: Path) -> None:
    text = bundle(backend)
    other = tmp_path / "other" / "inner"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('wrong copy')")
    told = run_alone(
        f"import sys\nsys.path.insert(0, {str(other.parent)!r})\n"
        + text.split("annotations\n", 1)[1],
        tmp_path / "alone",
        "print(model.answer.VALUE)",
    )
    assert told == "\\d\\n\n"


def test_the_bundle_of_our_backend_is_readable_python() -> None:
    """Every source stands in it as it is: what is reviewed is what runs."""
    text = bundle(assets.backend_dir())
    ast.parse(text)
    for file in assets.backend_dir().rglob("*.py"):
        if file.name != "model.py":
            assert file.read_text(encoding="utf-8") in text


def test_same_sources_give_the_same_bundle(backend: Path) -> None:
    assert bundle(backend) == bundle(backend)


def test_sources_that_cannot_be_embedded_are_named(backend: Path) -> None:
    (backend / "inner" / "faulty.py").write_text("X = '''y'''\n")
    with pytest.raises(UserError, match=r"faulty\.py cannot be bundled"):
        bundle(backend)
    (backend / "inner" / "faulty.py").write_text("def\n")
    with pytest.raises(UserError, match=r"faulty\.py is no valid Python"):
        bundle(backend)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle-backend", str(tmp_path / "new" / "vllm" / "model.py")]) == 0
    assert "class TritonPythonModel" in (tmp_path / "new" / "vllm" / "model.py").read_text()
    assert main(["bundle-backend", str(tmp_path)]) == 0
    assert (tmp_path / "model.py").is_file()
    assert main(["bundle-backend", str(tmp_path), "--backend-dir", str(tmp_path / "no")]) == 2
    assert "holds no model.py" in capsys.readouterr().err
