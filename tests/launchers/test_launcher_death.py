"""Nothing outlives pytest: however it dies, all is gone in ten seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_servers import CONFIG, ECHO, ENGINE, SHM, regions
from victims import Victim, started
from waiting import eventually, gone

from pytest_vllm_triton.launchers.process import ProcessLauncher

SLOW = """
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""


class ProcessVictim(Victim):
    """Its servers are processes, with their files below `work_dir`."""

    def __init__(self, program: subprocess.Popen[str], work_dir: Path) -> None:
        super().__init__(program)
        self.work_dir = work_dir

    def engine(self, facts: dict[str, Any]) -> dict[str, Any]:
        engine: dict[str, Any] = json.loads(Path(facts["repository"], "m/engine.json").read_text())
        return engine


@pytest.fixture
def victim(
    launcher: ProcessLauncher,
    backend_dir: Path,
    kill_later: list[int],
    request: pytest.FixtureRequest,
) -> Iterator[ProcessVictim]:
    code, when = request.param
    given = {
        "tritonserver": str(launcher.tritonserver),
        "backends": str(launcher.backends),
        "environment": launcher.environment,
        "work_dir": str(launcher.work_dir),
        "backend_dir": str(backend_dir),
        "config": CONFIG,
        "code": code,
        "when": when,
    }
    with started("orphan_maker.py", given) as victim:
        yield ProcessVictim(victim.program, launcher.work_dir)


def remains(victim: ProcessVictim, pids: list[int]) -> list[str]:
    """What of the victim's servers is still there."""
    left = [f"process {pid}" for pid in pids if not gone(pid)]
    for folder in victim.work_dir.iterdir():
        config = json.loads((folder / "supervisor.json").read_text())
        left += regions(config["shm_prefix"])
        for process in psutil.process_iter(["cmdline"]):
            if any(str(folder) in word for word in process.info["cmdline"] or ()):
                left.append(f"process {process.pid}")
    return left


@pytest.mark.parametrize("victim", [(ECHO, "serving")], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_launching_process_leaves_nothing(victim: ProcessVictim, number: int) -> None:
    facts = victim.facts()
    pids = [*facts["pids"], facts["supervisor"]]
    assert len(pids) == 3
    assert remains(victim, pids)

    victim.kill(number)

    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)


@pytest.mark.parametrize("victim", [(ENGINE, "serving")], indirect=True)
def test_engine_processes_that_are_deaf_to_sigterm_go_too(victim: ProcessVictim) -> None:
    before = {path.name for path in SHM.iterdir()}
    facts = victim.facts()
    engine = victim.engine(facts)
    pids = [*facts["pids"], facts["supervisor"]]
    assert engine["pid"] in pids
    assert os.getsid(engine["pid"]) == engine["pid"]
    assert Path(engine["region"]).name not in before

    victim.kill()

    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)
    assert not Path(engine["region"]).exists()


@pytest.mark.parametrize("victim", [(ENGINE, "serving")], indirect=True)
def test_a_server_that_does_not_stop_is_killed(victim: ProcessVictim) -> None:
    facts = victim.facts()
    engine = victim.engine(facts)
    pids = [*facts["pids"], facts["supervisor"]]
    os.kill(facts["server"], signal.SIGSTOP)

    start = time.monotonic()
    victim.kill()

    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)
    assert time.monotonic() - start > 1.5, "it was given no time to stop"
    assert not Path(engine["region"]).exists()


@pytest.mark.parametrize("victim", [(ECHO, "forked")], indirect=True)
def test_a_forked_child_that_lives_on_does_not_keep_the_server(
    victim: ProcessVictim, kill_later: list[int]
) -> None:
    facts = victim.facts()
    kill_later.append(facts["forked"])
    pids = [*facts["pids"], facts["supervisor"]]

    victim.kill()

    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)
    assert not gone(facts["forked"])


@pytest.mark.parametrize("victim", [(SLOW, "booting")], indirect=True)
def test_killed_while_the_server_boots(victim: ProcessVictim) -> None:
    assert victim.program.stdout is not None
    assert victim.program.stdout.readline() == "booting\n"
    assert remains(victim, [])

    victim.kill()

    assert eventually(lambda: not remains(victim, []), 10), remains(victim, [])


@pytest.mark.parametrize("victim", [(ENGINE, "exit"), (ENGINE, "crash")], indirect=True)
def test_a_program_that_forgets_to_stop_its_server(victim: ProcessVictim) -> None:
    facts = victim.facts()
    engine = victim.engine(facts)
    pids = [*facts["pids"], facts["supervisor"]]

    victim.program.wait(10)

    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)
    assert not Path(engine["region"]).exists()


@pytest.mark.parametrize("victim", [(ECHO, "serving")], indirect=True)
def test_supervisor_and_launching_process_killed_together(victim: ProcessVictim) -> None:
    facts = victim.facts()
    os.kill(facts["supervisor"], signal.SIGKILL)
    victim.kill()

    pids = [*facts["pids"], facts["supervisor"]]
    assert eventually(lambda: not remains(victim, pids), 10), remains(victim, pids)
