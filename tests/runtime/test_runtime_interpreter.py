"""Finding a Python that can be embedded."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime import interpreter
from pytest_vllm_triton.runtime.interpreter import Interpreter, find_interpreters, probe


def find_interpreter(wanted: str | None = None) -> Interpreter:
    return next(find_interpreters(wanted))


class Pythons:
    """Makes programs that answer the probe like some Python would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.made: list[Path] = []
        monkeypatch.setattr(interpreter, "_places", lambda: iter(self.made))

    def add(self, **changes: Any) -> Path:
        prefix = self.folder / f"python{len(self.made)}"
        (prefix / "bin").mkdir(parents=True)
        (prefix / "lib").mkdir()
        facts = {
            "version": [3, 11, 9],
            "implementation": "cpython",
            "prefix": str(prefix),
            "shared": True,
            "libdir": str(prefix / "lib"),
            "multiarch": "x86_64-linux-gnu",
            "library": "libpython3.11.so.1.0",
            "venv": True,
            **changes,
        }
        (prefix / "lib" / "libpython3.11.so.1.0").write_text("")
        return self.program(prefix / "bin" / "python3", f"echo '{json.dumps(facts)}'")

    def program(self, path: Path, line: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        self.made.append(path)
        return path


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pythons:
    return Pythons(tmp_path, monkeypatch)


def test_the_first_suitable_python_is_taken(pythons: Pythons) -> None:
    pythons.add(version=[3, 13, 0])
    pythons.add(shared=False)
    wanted = pythons.add(version=[3, 12, 4])
    pythons.add()

    found = find_interpreter()

    assert found.executable == wanted
    assert found.version == "3.12.4"
    assert found.minor == "3.12"
    assert found.library == wanted.parent.parent / "lib" / "libpython3.11.so.1.0"


def test_all_suitable_pythons_are_found_in_order(pythons: Pythons) -> None:
    first = pythons.add()
    pythons.add(shared=False)
    second = pythons.add(version=[3, 12, 4])
    assert [found.executable for found in find_interpreters()] == [first, second]


def test_no_python_of_a_right_version(pythons: Pythons) -> None:
    new = pythons.add(version=[3, 13, 0])
    other = pythons.add(implementation="pypy")
    with pytest.raises(RuntimeUnavailable) as failure:
        find_interpreter()
    message = str(failure.value)
    assert message.startswith("No Python 3.11 or 3.12 was found on this host.")
    assert f"{new} (is cpython 3.13.0)" in message
    assert f"{other} (is pypy 3.11.9)" in message
    assert "--python PATH" in message
    assert "\n" not in message


def test_only_pythons_without_a_shared_library(pythons: Pythons) -> None:
    static = pythons.add(shared=False)
    lost = pythons.add(library="libpython3.11.so.2.0")
    with pytest.raises(RuntimeUnavailable) as failure:
        find_interpreter()
    message = str(failure.value)
    assert message.startswith("No Python 3.11 or 3.12 of this host comes with its shared library")
    assert f"{static} (3.11.9, built without a shared library)" in message
    assert f"{lost} (3.11.9, but its libpython3.11.so.2.0 is missing)" in message
    assert "--enable-shared" in message


def test_a_python_without_venv_is_passed_over(pythons: Pythons) -> None:
    pythons.add(venv=False)
    with pytest.raises(RuntimeUnavailable, match="without the venv module"):
        find_interpreter()


@pytest.mark.parametrize("line", ["exit 127", "echo hello", "kill -9 $$"])
def test_a_python_that_does_not_run_is_passed_over(pythons: Pythons, line: str) -> None:
    """Such as a shim of pyenv for a version that is not activated."""
    pythons.program(pythons.folder / "shim", line)
    good = pythons.add()
    assert find_interpreter().executable == good
    with pytest.raises(RuntimeUnavailable, match=r"shim \(does not run\)"):
        find_interpreter(str(pythons.made[0]))


def test_a_python_that_hangs_is_passed_over(
    pythons: Pythons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "PROBE_SECONDS", 0.2)
    pythons.program(pythons.folder / "hangs", "exec sleep 60")
    monkeypatch.setattr(pythons, "made", pythons.made)
    with pytest.raises(RuntimeUnavailable, match=r"hangs \(does not run\)"):
        find_interpreter()


def test_a_python_that_was_moved_after_its_build(pythons: Pythons) -> None:
    moved = pythons.add(libdir="/install/lib")
    assert find_interpreter().library == moved.parent.parent / "lib" / "libpython3.11.so.1.0"


def test_a_library_in_the_multiarch_folder(pythons: Pythons) -> None:
    python = pythons.add()
    folder = python.parent.parent / "lib"
    (folder / "x86_64-linux-gnu").mkdir()
    library = folder / "libpython3.11.so.1.0"
    there = library.rename(folder / "x86_64-linux-gnu" / library.name)
    assert find_interpreter().library == there


def test_the_wanted_python_is_the_only_one_looked_at(pythons: Pythons) -> None:
    pythons.add()
    wanted = pythons.add(shared=False)
    with pytest.raises(RuntimeUnavailable) as failure:
        find_interpreter(str(wanted))
    assert str(failure.value).startswith(f"{wanted} cannot carry the embedded server runtime.")
    assert str(pythons.made[0]) not in str(failure.value)
    with pytest.raises(RuntimeUnavailable, match=r"nonexistent \(does not run\)"):
        find_interpreter("/nonexistent")


def test_none_is_looked_at_twice(pythons: Pythons) -> None:
    python = pythons.add(shared=False)
    pythons.made.append(python)
    link = pythons.folder / "link"
    link.symlink_to(python)
    pythons.made.append(link)
    with pytest.raises(RuntimeUnavailable) as failure:
        find_interpreter()
    assert str(failure.value).count("built without") == 1


def test_the_usual_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    for variable, path in {
        "PYENV_ROOT": "pyenv/versions/3.11.9/bin/python3.11",
        "UV_PYTHON_INSTALL_DIR": "uv/cpython-3.12.3-linux/bin/python3.12",
        "PATH": "bin/python3.12",
    }.items():
        program = tmp_path / path
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
        expected.append(program)
        top = path.partition("/")[0]
        monkeypatch.setenv(variable, str(tmp_path / top))
    places = list(interpreter._places())
    assert set(expected) <= set(places)
    assert places[0] == Path(sys._base_executable)
    assert Path("/usr/bin/python3.12") in places


def test_what_is_found_on_this_host_is_what_it_says() -> None:
    found = find_interpreter()
    again = probe(found.executable)
    assert again == found
    ctypes.CDLL(str(found.library))
    assert found.minor in found.library.name
