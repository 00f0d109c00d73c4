"""A stub that may not unload its model must know so: a refusal can crash it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vllm_triton_backend import server

BACKEND = Path(server.__file__).parents[1]


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("tritonserver --model-repository=/m", "none"),
        ("/opt/tritonserver/bin/tritonserver --model-control-mode=explicit", "explicit"),
        ("tritonserver --model-control-mode poll --strict-readiness=true", "poll"),
        ("tritonserver --model-control-mode=explicit --model-control-mode none", "none"),
        ("tritonserver --model-control-mode", ""),
        ("python3 serve.py --model-control-mode=explicit", None),
    ],
)
def test_control_mode(command_line: str, expected: str | None) -> None:
    assert server.control_mode(command_line.split()) == expected


@pytest.mark.parametrize(
    ("program", "option", "expected"),
    [
        ("tritonserver", "--model-control-mode=none", "False"),
        ("tritonserver", "--model-control-mode=explicit", "True"),
        ("python3", "--model-control-mode=none", "True"),
    ],
)
def test_the_parent_is_asked(program: str, option: str, expected: str) -> None:
    child = "from vllm_triton_backend.server import can_unload; print(can_unload())"
    parent = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {child!r}])"
    ran = subprocess.run(
        [program, "-c", parent, option],
        executable=sys.executable,
        env={"PYTHONPATH": str(BACKEND)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.stdout.strip(), ran.stderr) == (expected, "")
