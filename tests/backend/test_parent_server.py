"""A stub that must not ask its server for something has to know so: a refusal can crash it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vllm_triton_backend import parent_server

BACKEND = Path(parent_server.__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", None),
        ("--allow-metrics-of=true", None),
        ("--allow-metrics=False --allow-http=true", "false"),
        ("--allow-metrics 0", "0"),
        ("--allow-metrics=false --allow-metrics true", "true"),
        ("--allow-metrics", ""),
    ],
)
def test_value_of(arguments: str, expected: str | None) -> None:
    assert parent_server.value_of("--allow-metrics", arguments.split()) == expected


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("tritonserver", "--model-repository=/m", "False True"),
        ("/opt/tritonserver/bin/tritonserver", "--model-control-mode=explicit", "True True"),
        ("tritonserver", "--model-control-mode poll --allow-metrics=false", "False False"),
        ("python3", "--model-control-mode=none --allow-metrics=false", "True True"),
    ],
)
def test_the_parent_is_asked(program: str, arguments: str, expected: str) -> None:
    child = (
        "from vllm_triton_backend import parent_server as p; print(p.can_unload(), p.has_metrics())"
    )
    parent = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {child!r}])"
    ran = subprocess.run(
        [program, "-c", parent, *arguments.split()],
        executable=sys.executable,
        env={"PYTHONPATH": str(BACKEND)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.stdout.strip(), ran.stderr) == (expected, "")
