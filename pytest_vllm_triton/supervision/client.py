"""Our side of a process under a supervisor: start it, hear of it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.supervision.standalone.proc_stat import read_process
from pytest_vllm_triton.supervision.standalone.processes import (
    command_line,
    descendants,
    kill_all,
    remaining_family,
)
from pytest_vllm_triton.supervision.standalone.scratch import remove_environments, remove_folder
from pytest_vllm_triton.supervision.standalone.shared_memory import Regions, list_regions
from pytest_vllm_triton.supervision.standalone.supervisor import (
    KERNEL_SECONDS,
    PATIENCE_SECONDS,
    Config,
)
from pytest_vllm_triton.supervision.stop_report import StopReport

#: What is run as the supervisor.
PROGRAM = Path(__file__).parent
#: The supervisor's own files, in the folder that it is given.
FILES = CONFIG_FILE, STATE_FILE, LOG_FILE = (
    "supervisor.json",
    "supervisor-state.json",
    "supervisor.log",
)
START_SECONDS = 30.0
#: Of what the supervisor itself said, should it fail.
LAST_LINES = 30


class Supervised:
    """A process under a supervisor.

    Attributes:
        config: what the supervisor was told to do.
        facts: all that the supervisor has said so far.
        connected: whether the supervisor is there.
        report: how it ended, once :meth:`end` was called.
    """

    def __init__(
        self,
        config: Config,
        process: subprocess.Popen[bytes],
        connection: socket.socket,
        folder: Path,
    ) -> None:
        self.config = config
        self.supervisor = process
        self.connection = connection
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self.events: set[str] = set()
        self.connected = True
        self.report: StopReport | None = None
        self._ending = threading.RLock()
        self._reading = threading.RLock()
        self._partial = b""

    @classmethod
    def start(
        cls,
        command: list[str],
        environment: dict[str, str],
        folder: Path,
        *,
        log: Path,
        shm_prefix: str = "",
        orphan_grace: float = 0.0,
    ) -> Supervised:
        """Start the command with its output in ``log`` and the supervisor's files in ``folder``."""
        config = Config(
            command=command,
            environment=environment,
            log=str(log),
            state=str(folder / STATE_FILE),
            shm_prefix=shm_prefix,
            shm_before=sorted(list_regions()),
            parent=os.getpid(),
            orphan_grace=orphan_grace,
        )
        path = folder / CONFIG_FILE
        path.touch(mode=0o600)  # it holds the whole environment
        path.write_text(json.dumps(config._asdict()))
        ours, theirs = socket.socketpair()
        with theirs, (folder / LOG_FILE).open("wb") as own_log:
            process = subprocess.Popen(
                # -B: it leaves no compiled files where the user's own Python may leave none.
                [sys.executable, "-I", "-S", "-B", str(PROGRAM), str(path)],
                stdin=theirs.fileno(),
                stdout=own_log,
                stderr=own_log,
            )
        return cls(config, process, ours, folder)

    def wait_started(self) -> None:
        """Return when the process runs; raises ServerFailed where it cannot be started."""
        self.wait_for("started", "failed", timeout=START_SECONDS)
        if "started" in self.events:
            return
        program = self.config.command[0]
        reason = self.facts.get("reason", "its supervisor did not start")
        self.end(0.0)
        own_log = (self.folder / LOG_FILE).read_text("utf-8", "replace")
        last_lines = [line for line in own_log.splitlines() if line.strip()][-LAST_LINES:]
        raise ServerFailed(f"{program} could not be started: {reason}.", "\n".join(last_lines))

    @property
    def pid(self) -> int | None:
        """The process id, once it was started."""
        return self.facts.get("pid")

    @property
    def exit_code(self) -> int | None:
        """The exit status once it has ended: -N for signal N."""
        self.receive()
        return self.facts.get("code")

    def is_running(self) -> bool:
        if self.pid is None or self.exit_code is not None or self.report is not None:
            return False
        return self.connected or lives(self.pid)

    def tree(self) -> list[int]:
        """The process and all that came from it and lives, adopted orphans too."""
        self.receive()
        if self.report is not None:
            return []
        if self.connected:
            return descendants(self.supervisor.pid)
        return self._remaining()

    def end(self, grace: float) -> StopReport:
        """SIGTERM, then SIGKILL of the whole tree after ``grace`` seconds; 0: SIGKILL at once."""
        with self._ending:
            if self.report is None:
                order = {"do": "stop", "grace": grace} if grace > 0 else {"do": "kill"}
                with contextlib.suppress(OSError):
                    self.connection.sendall(json.dumps(order).encode() + b"\n")
                self.wait_for("done", timeout=grace + PATIENCE_SECONDS)
                self.report = self._close(grace)
            return self.report

    def receive(self, timeout: float = 0.0) -> None:
        """Take in what the supervisor has said; waits at most ``timeout`` for the first of it."""
        with self._reading:
            while self.connected:
                poll = select.poll()
                poll.register(self.connection, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    return
                timeout = 0.0
                try:
                    data = self.connection.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    self.connected = False
                *lines, self._partial = (self._partial + data).split(b"\n")
                for line in lines:
                    fact = json.loads(line)
                    self.events.add(fact.pop("event"))
                    self.facts.update(fact)

    def wait_for(self, *events: str, timeout: float) -> None:
        """Until one of these was said, the supervisor is gone, or the time is over."""
        deadline = time.monotonic() + timeout
        while self.connected and not self.events.intersection(events):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.receive(min(left, 1.0))

    def _close(self, grace: float) -> StopReport:
        """Make sure that nothing is left, whatever became of the supervisor."""
        if "done" in self.events:
            report = StopReport(
                exit_code=self.facts.get("code"),
                forced=self.facts["forced"],
                orphans=tuple(self.facts["orphans"]),
                swept=tuple(self.facts["swept"]),
            )
        else:
            report = self._close_by_hand(grace)
        self.connection.close()
        self.connected = False
        try:
            self.supervisor.wait(5)
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()
        return report

    def _close_by_hand(self, grace: float) -> StopReport:
        """The supervisor was killed, or hangs: do its work from here."""
        self.supervisor.kill()  # the kernel sends SIGTERM to the server now, if it has not yet
        self.supervisor.wait()
        server = self.facts.get("pid")
        if server is None:
            return StopReport(exit_code=None, forced=True)
        deadline = time.monotonic() + grace
        while lives(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        forced = lives(server)
        left = self._remaining()
        orphans = tuple(f"{pid} {command_line(pid)}" for pid in left if pid != server)
        regions = self._regions()
        regions.observe(regions.unknown(), left)
        kill_all(self._remaining, KERNEL_SECONDS)
        swept = tuple(regions.sweep())
        remove_folder(self._state().get("scratch", ""))
        remove_environments()
        return StopReport(self.facts.get("code"), forced, () if forced else orphans, swept)

    def _remaining(self) -> list[int]:
        """The server and all that came from it and lives, as far as it can be told without the
        supervisor."""
        if self.pid is None:
            return []
        return remaining_family(self.pid, self._state().get("noted", []))

    def _regions(self) -> Regions:
        regions = Regions(self.config.shm_prefix, set(self.config.shm_before))
        state = self._state()
        regions.ours.update(state.get("ours", ()))
        regions.foreign.update(state.get("foreign", ()))
        return regions

    def _state(self) -> dict[str, Any]:
        """What the supervisor has written down; empty if it did not come to it."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.folder / STATE_FILE).read_text()
            state: dict[str, Any] = json.loads(text)
            return state
        return {}


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return read_process(pid).lives
    return False
