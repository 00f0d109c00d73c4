"""The process between pytest and a server, so that nothing outlives pytest.

Its standard input is one end of a socket pair.

* It starts the server's command and becomes the subreaper of all that comes from it, so that
  orphans and processes in other sessions stay its descendants and can be found.
* Neither it nor the server has a session of its own, but a process group, which Ctrl-C at pytest's
  terminal does not reach. Linux gives each session its share of the processors (sched(7),
  autogroup): of two cores that an engine's session kept busy, pytest's threads were seen to wait up
  to 26 s for one (Linux 6.18), and took the backend for late; in one session they wait for 0.01 s.
* When pytest dies, in whatever way, the other end of that pair closes (and the pidfd of pytest
  fires, should a forked child of pytest still hold a copy): the server is asked to stop, then
  killed with its whole tree, then its shared memory is swept.
* If the supervisor itself is killed, the kernel sends SIGTERM to the server (PDEATHSIG).
* The server has a folder for temporary files of its own, which goes when it is gone: vLLM's
  processes leave sockets and files there. Triton's Python backend makes another one in /tmp, and
  leaves it when it is killed.
* It notes which regions of /dev/shm the server's processes and which other processes use, so that
  the sweep knows its own.

CONFIG is a JSON file: see :class:`Config`. Messages on the socket are JSON lines. To pytest:
``{"event": "started" | "failed" | "exited" | "done", ...}``; from pytest: ``{"do": "stop",
"grace": SECONDS}`` and ``{"do": "kill"}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .processes import births, command_line, descendants, kill_all, reap, send
from .scratch import Scratch, remove_environments
from .shared_memory import LOOK_AGAIN_SECONDS, Regions

POLL_SECONDS = 0.5
#: How long pytest waits for us beyond the grace, before it does our work from there. What the times
#: below add up to is less, by more than the sweeps need.
PATIENCE_SECONDS = 60.0
#: How long the server's own children may take to end after it: until the grace is over, but no less
#: than the one and no more than the other.
MIN_CHILDREN_SECONDS = 1.0
MAX_CHILDREN_SECONDS = 3.0
#: How long the killed may take to be gone; and those whose memory the kernel still takes apart.
KILL_SECONDS = 5.0
KERNEL_SECONDS = 40.0

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Config(NamedTuple):
    """What CONFIG holds."""

    command: list[str]
    environment: dict[str, str]
    log: str
    state: str
    shm_prefix: str
    shm_before: list[str]
    parent: int
    """The process whose death ends the server."""
    orphan_grace: float
    """Seconds between SIGTERM and SIGKILL when that process died."""


class Supervisor:
    def __init__(self, config: Config, control: socket.socket, libc: ctypes.CDLL) -> None:
        self.config = config
        self.control: socket.socket | None = control
        self.libc = libc
        self.regions = Regions(config.shm_prefix, set(config.shm_before))
        self.noted: list[list[int]] = []
        self.look_again = 0.0
        self.scratch = Scratch(config.environment.get("TMPDIR") or "/tmp")
        self.server = 0
        self.exit_code: int | None = None
        self.received = b""
        self.state: dict[str, Any] = {"supervisor": os.getpid(), "scratch": self.scratch.path}

    # talking to pytest

    def tell(self, event: str, **content: Any) -> None:
        self.remember(event=event, **content)
        if self.control is not None:
            try:
                self.control.sendall(json.dumps({"event": event, **content}).encode() + b"\n")
            except OSError:
                self.control = None

    def remember(self, **content: Any) -> None:
        """Keep the state in a file too: it survives us, should we be killed."""
        self.state.update(content)
        self.state.update(ours=sorted(self.regions.ours), foreign=sorted(self.regions.foreign))
        self.state.update(noted=self.noted)
        temporary = self.config.state + ".new"
        with contextlib.suppress(OSError):
            with open(temporary, "w") as file:
                json.dump(self.state, file)
            os.replace(temporary, self.config.state)

    # the life of the server

    def start(self) -> None:
        us, libc = os.getpid(), self.libc

        def in_child() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != us:
                os._exit(125)
            os.setpgid(0, 0)

        with open(self.config.log, "ab") as log, open(os.devnull, "rb") as nothing:
            self.server = subprocess.Popen(
                self.config.command,
                env=self.scratch.environment(self.config.environment),
                stdin=nothing,
                stdout=log,
                stderr=log,
                preexec_fn=in_child,  # safe: this process has one thread
            ).pid
        self.tell("started", pid=self.server)

    def note_ended(self) -> None:
        ended = reap()
        if self.server in ended and self.exit_code is None:
            self.exit_code = ended[self.server]
            self.tell("exited", code=self.exit_code)

    def run(self, wakeup: int, stopping: list[int]) -> None:
        """Watch until pytest wants the server ended, or died, or we are told to end (SIGTERM)."""
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        if self.control is not None:
            poll.register(self.control, select.POLLIN)
        parent = -1
        with contextlib.suppress(OSError):
            parent = os.pidfd_open(self.config.parent)
            poll.register(parent, select.POLLIN)
        while True:
            ready = [number for number, _ in poll.poll(POLL_SECONDS * 1000)]
            if wakeup in ready:
                os.read(wakeup, 4096)
            self.note_ended()
            self.look()
            # The second test is for a death before the pidfd was made.
            if parent in ready or os.getppid() != self.config.parent or stopping:
                return self.finish(self.config.orphan_grace)
            if self.control is not None and self.control.fileno() in ready:
                order = self.next_order()
                if order is not None:
                    return self.finish(order)

    def look(self) -> None:
        """Note which processes there are, and who uses new regions."""
        names, now = self.regions.take_due(), time.monotonic()
        if not names and now < self.look_again:
            return
        self.look_again = now + LOOK_AGAIN_SECONDS
        tree = descendants(os.getpid())
        news = self.regions.observe(names, tree) if names else False
        noted = births(tree)
        if news or noted != self.noted:
            self.noted = noted
            self.remember()

    def next_order(self) -> float | None:
        """Seconds of grace before SIGKILL, once we are to end the server."""
        assert self.control is not None
        try:
            data = self.control.recv(4096)
        except OSError:
            data = b""
        if not data:
            self.control = None
            return self.config.orphan_grace
        self.received += data
        line, newline, self.received = self.received.partition(b"\n")
        if not newline:
            self.received = line
            return None
        order = json.loads(line)
        return 0.0 if order["do"] == "kill" else float(order["grace"])

    def finish(self, grace: float) -> None:
        """Ask the server to stop, wait, then kill all that is left, and sweep."""
        us = os.getpid()
        deadline = time.monotonic() + grace
        if self.exit_code is None and grace > 0:
            send(self.server, signal.SIGTERM)
            self.wait(lambda: self.exit_code is not None, deadline)
        forced = self.exit_code is None
        if not forced and grace > 0:
            # Engine processes may still be on their way out: that is no leak.
            ended = time.monotonic()
            deadline = max(deadline, ended + MIN_CHILDREN_SECONDS)
            self.wait(lambda: not descendants(us), min(deadline, ended + MAX_CHILDREN_SECONDS))
        self.regions.observe(self.regions.unknown(), descendants(us))
        orphans = [f"{pid} {command_line(pid)}" for pid in descendants(us) if pid != self.server]
        immortal = kill_all(lambda: descendants(us), KILL_SECONDS)
        swept = self.regions.sweep()
        if immortal:
            # Killed, but the kernel still takes their memory apart: what counts is gone by now.
            immortal = kill_all(lambda: descendants(us), KERNEL_SECONDS)
            swept += self.regions.sweep()
        self.scratch.remove()
        remove_environments()
        self.note_ended()
        if self.exit_code is None and self.server not in immortal:
            self.exit_code = -signal.SIGKILL
        self.tell(
            "done",
            code=self.exit_code,
            forced=forced,
            orphans=[] if forced else orphans,
            swept=swept,
        )

    def wait(self, done: Callable[[], bool], deadline: float) -> None:
        """Until done, or the deadline; pytest may shorten it (a kill, or its death)."""
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self.control is None:
                time.sleep(min(left, 0.02))
            elif select.select([self.control], [], [], min(left, 0.02))[0]:
                order = self.next_order()
                if order is not None:
                    deadline = min(deadline, time.monotonic() + order)
            self.note_ended()


def main(arguments: list[str]) -> int:
    os.setpgid(0, 0)
    control = socket.socket(fileno=0)
    control.set_inheritable(False)  # the server must not keep the connection open
    with open(arguments[0]) as file:
        config = Config(**json.load(file))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Handlers, not SIG_IGN: an ignored signal stays ignored in the server after exec.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    supervisor = Supervisor(config, control, libc)
    try:
        supervisor.start()
    except OSError as error:
        supervisor.scratch.remove()
        supervisor.tell("failed", reason=str(error))
        return 1
    supervisor.run(wakeup, stopping)
    return 0
