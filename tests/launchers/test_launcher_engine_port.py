"""An engine whose port another program took while it started; the suite loads once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_servers import ECHO, Launch, model

from pytest_vllm_triton.clients.repository import ModelRepository

# The first loads fail, as many as are said, and each leaves a line.
UNLUCKY = """
    def initialize(self, args):
        import pathlib
        notes = pathlib.Path(NOTES)
        loads = len(notes.read_text().splitlines()) if notes.exists() else 0
        with notes.open("a") as file:
            file.write("load\\n")
        if loads < FAILURES:
            print(LOGGED, flush=True)
            raise RuntimeError(ERROR)
"""
TORCH = "The server socket has failed to listen on any local network address. port: 29500"


def loads_of(launch: Launch, notes: Path, failures: int, error: str, logged: str) -> str | None:
    """The error of the load of a model that is so unlucky."""
    code = UNLUCKY.replace("NOTES", repr(str(notes))).replace("FAILURES", str(failures))
    code = code.replace("LOGGED", repr(logged)).replace("ERROR", repr(error))
    repository = ModelRepository(launch(model("echo")))
    repository.add(model("unlucky", ECHO + code))
    return repository.load("unlucky").error


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (f"{TORCH}, name: EADDRINUSE, message: address already in use", ""),
        ("[Errno 98] Address already in use", ""),
        ("Engine core initialization failed. See root cause above.", f"{TORCH}: EADDRINUSE"),
    ],
    ids=["torch", "python", "log"],
)
def test_load_is_asked_for_once_more(
    launch: Launch, tmp_path: Path, error: str, logged: str
) -> None:
    assert loads_of(launch, tmp_path / "loads", 1, error, logged) is None


def test_but_not_for_ever(launch: Launch, tmp_path: Path) -> None:
    error = loads_of(launch, tmp_path / "loads", 9, "[Errno 98] Address already in use", "")
    assert "Address already in use" in (error or "")
    assert (tmp_path / "loads").read_text().split() == ["load"] * 2


def test_what_failed_for_another_reason_has_failed(launch: Launch, tmp_path: Path) -> None:
    assert loads_of(launch, tmp_path / "loads", 1, "no such model", "") is not None
    assert (tmp_path / "loads").read_text().split() == ["load"]
