"""Programs that launch a server and are then killed: whatever they started must be gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Victim:
    """A running program of this folder, e.g. ``orphan_maker.py``."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program

    def facts(self) -> dict[str, Any]:
        """What it says once it has a server."""
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        assert line, "the program died before it had a server"
        facts: dict[str, Any] = json.loads(line)
        return facts

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.program.send_signal(number)
        self.program.wait(30)


@contextmanager
def started(name: str, given: Mapping[str, Any]) -> Iterator[Victim]:
    """The program `name`, which is told `given`; killed at the end."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(name))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=_as_from_a_terminal,
    ) as program:
        assert program.stdin is not None
        program.stdin.write(json.dumps(given) + "\n")
        program.stdin.flush()
        yield Victim(program)
        program.kill()


def _as_from_a_terminal() -> None:
    """What pytest was told to ignore (nohup, a background job) must end the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
