"""However a run is ended, nothing of it is left: no process, no shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from plugin_helpers import environment

from conformance.processes import described

MARK = "PLUGIN_TEST_RUN"
BOOT_SECONDS = 360
GONE_SECONDS = 10


class Run:
    """A pytest run of the suite, and everything that descends from it.

    Each process inherits a variable and a folder of its own, so that servers of other runs on this
    machine are not taken for it. (Of an engine only the folder can be seen: its title is written
    over its environment.) Regions in /dev/shm are told apart by who maps them.
    """

    def __init__(self, folder: Path, tests: str) -> None:
        self.folder = folder
        self.mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self.output = folder / "output.txt"
        self.regions: set[str] = set()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-u", "-m", "pytest", "-v", "--vllm-model=known-answer"),
                    *("-k", tests, "--basetemp=work"),
                ],
                cwd=folder,
                env=environment(**{name: value}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def living(self) -> list[psutil.Process]:
        """Processes that carry the mark, or work in its folder."""
        wanted, found = self.mark.encode(), []
        for process in psutil.process_iter():
            try:
                files = Path(f"/proc/{process.pid}")
                marked = wanted in (files / "environ").read_bytes().split(b"\0")
                marked = marked or (files / "cwd").readlink() == self.folder
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def log(self) -> str:
        """What its servers have logged."""
        return "".join(path.read_text(errors="replace") for path in self.folder.rglob("triton.log"))

    def note_regions(self) -> None:
        """Remember the regions that the run's processes have mapped so far."""
        for process in self.living():
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
            except OSError:
                continue
            for line in maps.splitlines():
                _, slash, name = line.partition(" /dev/shm/")
                if slash:
                    self.regions.add(name.removesuffix(" (deleted)"))

    def wait_for(self, condition: Callable[[Run], bool], seconds: float) -> None:
        """Until it is as wanted."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            text = self.text()
            assert self.process.poll() is None, f"it ended early:\n{text}"
            assert time.monotonic() < deadline, f"not in {seconds} s:\n{text}"
            time.sleep(0.05)
        self.note_regions()

    def text(self) -> str:
        """Its output."""
        return self.output.read_text(errors="replace")

    def left(self) -> list[str]:
        """What is still there of it."""
        names = [described(process) for process in self.living()]
        return names + [name for name in self.regions if Path("/dev/shm", name).exists()]

    def nothing_left_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := self.left():
            assert time.monotonic() < deadline, f"left after {seconds} s: {left}"
            time.sleep(0.1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    """Starts a run of the tests that ``-k`` finds."""
    started: list[Run] = []

    def run(tests: str = "test_greedy_repeats or test_tokens_arrive") -> Run:
        started.append(Run(tmp_path, tests))
        return started[0]

    yield run
    # More than once: what is killed here may just have started another process.
    while living := [process for run in started for process in run.living()]:
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def booting(run: Run) -> bool:
    """The server process is there and vLLM is being imported or started."""
    return "vLLM engine starting" in run.text() or "loading model" in run.text()


def in_a_test(run: Run) -> bool:
    return "PASSED" in run.text()


def loading_another_model(run: Run) -> bool:
    return "loading: vision_model" in run.log()


def interrupt(run: Run) -> None:
    assert len(run.living()) > 1
    # As a terminal does it: to the whole foreground group, of which the server must be no part.
    os.killpg(run.process.pid, signal.SIGINT)


def expect_interrupted(run: Run, seconds: float) -> None:
    status = run.process.wait(timeout=seconds)
    assert status == pytest.ExitCode.INTERRUPTED, run.text()
    assert "KeyboardInterrupt" in run.text()
    assert "Traceback" not in run.text()
    run.nothing_left_within(1)


@pytest.mark.parametrize("moment", [booting, in_a_test], ids=["boot", "test"])
def test_interrupt(start: Callable[..., Run], moment: Callable[[Run], bool]) -> None:
    run = start()
    run.wait_for(moment, BOOT_SECONDS)
    interrupt(run)
    expect_interrupted(run, 60)


def test_interrupt_does_not_wait_for_a_load(start: Callable[..., Run]) -> None:
    """Triton unloads none of the models that are there while another is being loaded."""
    run = start("test_embedding_is_a_list_of_numbers or test_base64_in_lines")
    run.wait_for(loading_another_model, 2 * BOOT_SECONDS)
    interrupt(run)
    expect_interrupted(run, 5)


@pytest.mark.parametrize("moment", [booting, in_a_test], ids=["boot", "test"])
def test_kill(start: Callable[..., Run], moment: Callable[[Run], bool]) -> None:
    run = start()
    run.wait_for(moment, BOOT_SECONDS)
    assert len(run.living()) > 1
    run.process.kill()
    run.process.wait()
    run.nothing_left_within(GONE_SECONDS)
