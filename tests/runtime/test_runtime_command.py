"""The command ``pytest-vllm-triton runtime``."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_triton import cli
from pytest_vllm_triton.runtime import progress
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session.state import SETTINGS

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.usefixtures("offline_wheels")
def test_create_list_path_remove(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runtime", "list"]) == 0
    assert capfd.readouterr().out == f"no runtimes in {home / 'runtimes'}\n"

    assert cli.main(["runtime", "path"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "There is no runtime with vLLM 0.32.0 on the CPU yet" in captured.err
    assert "runtime create --accelerator cpu --vllm-version 0.32.0" in captured.err

    assert cli.main(["runtime", "create"]) == 0
    captured = capfd.readouterr()
    root = Path(captured.out.strip())
    assert root.is_dir()
    assert "[4/7] installing the packages" in captured.err

    assert cli.main(["runtime", "create"]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{root}\n"
    assert captured.err == ""

    assert cli.main(["runtime", "path"]) == 0
    assert capfd.readouterr().out == f"{root}\n"

    assert cli.main(["runtime", "list"]) == 0
    assert (
        f"{root.name}  Triton 2.51.0, vLLM 0.32.0 on the CPU, Python 3." in capfd.readouterr().out
    )

    assert cli.main(["runtime", "remove", root.name]) == 0
    assert capfd.readouterr().out == f"removed {root.name}\n"
    assert not root.exists()


def test_errors_are_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runtime", "remove", "nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pytest-vllm-triton: There is no runtime 'nothing'")
    assert error.count("\n") == 1


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_vllm_triton.runtime.create_runtime", interrupt)
    assert cli.main(["runtime", "create"]) == 130
    assert "run it again to go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["runtime"], ["runtime", "remove"], ["runtime", "remove", "k", "--all"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


def test_remove_all_takes_interrupted_ones_too(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = home / "runtimes" / "triton2.51.0-vllm0.32.0-py3.11.7-0123abcd.partial"
    partial.mkdir(parents=True)
    assert cli.main(["runtime", "list"]) == 0
    assert f"{partial.stem}  interrupted" in capsys.readouterr().out
    assert cli.main(["runtime", "remove", "--all"]) == 0
    assert not partial.exists()


def test_the_command_starts_fast_and_light() -> None:
    """Help must not cost the import of what only the work needs."""
    code = (
        "import sys; from pytest_vllm_triton import cli\n"
        "try: cli.main(['runtime', '--help'])\n"
        "except SystemExit: print([m for m in ('rich', 'httpx', 'psutil', 'filelock') "
        "if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with progress.shown(stream) as tell:
        for package in ("one", "two", "three"):
            tell(f"[1/2] installing: {package}")
        tell("[2/2] checking")
        monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
        tell("[2/2] checking: more")
    lines = stream.getvalue().splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        "[1/2] installing: one",
        "[2/2] checking",
        "[2/2] checking: more",
    ]


@pytest.mark.usefixtures("offline_wheels")
def test_a_session_that_makes_a_runtime_shows_its_steps_and_not_every_package(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))  # noqa: PTH120 - no tritonserver
    config = pytester.parseconfigure("--triton-launcher=process", "--triton-accelerator=cpu")
    lines: list[str] = []
    provision = Provision(config.stash[SETTINGS], lambda: pytester.path, lines.append)
    assert provision.runtime is not None
    config._ensure_unconfigure()
    titles = [line.partition(": ")[0] for line in lines]
    assert titles == sorted(set(titles))
    assert "[4/7] installing the packages" in titles


def test_progress_on_a_terminal_is_one_live_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress.shown(stream) as tell:
        tell("[1/2] installing: torch")
    assert "[1/2] installing: torch" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h") or "\x1b[" in stream.getvalue()
