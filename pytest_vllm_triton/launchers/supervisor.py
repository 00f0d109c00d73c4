"""The process between pytest and a server, so that nothing outlives pytest.

Run by path, with the standard library alone: ``python -I -S supervisor.py CONFIG``, with one end of
a socket pair as its standard input.

* It starts the server's command and becomes the subreaper of all that comes from it, so that
  orphans and processes in other sessions stay its descendants and can be found.
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

# Plain os calls instead of pathlib: quick to import, and /proc is read often.
# ruff: noqa: PTH102, PTH105, PTH106, PTH108, PTH115, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

SHM = "/dev/shm"
#: Names that vLLM, multiprocessing and Triton give to the regions they make.
REGION_NAMES = re.compile(r"psm_|sem\.mp-|triton_")
POLL_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 5.0
#: How long the server's own children may take to end after it.
AFTER_EXIT_SECONDS = 3.0
#: vLLM's sockets have paths of up to 60 characters below the folder, and may have 107.
LONGEST_TMPDIR = 30
SCRATCH = "pvt-"
SCRATCH_NAME = re.compile(SCRATCH + "[0-9a-f]{8}")
#: Of the folders that Triton's Python backend makes, always in /tmp.
ENVIRONMENT_NAME = re.compile(r"python_env_[A-Za-z0-9]{6}")
#: The inode of the first PID namespace, fixed by the kernel (PROC_PID_INIT_INO).
FIRST_PID_NAMESPACE = "pid:[4026531836]"

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Identity = tuple[int, int]
"""Device and inode: the same region under any name and in any mount namespace."""


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


# --- processes -------------------------------------------------------------------------------


class Process(NamedTuple):
    pid: int
    parent: int
    state: str
    session: int


def all_processes() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # The second field is "(name)", and the name may hold spaces and brackets.
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                pid, state = int(name), fields[0].decode()
                found[pid] = Process(pid, int(fields[1]), state, int(fields[3]))
    return found


def descendants(root: int) -> list[int]:
    """The living descendants of ``root``; zombies are none, but their children are looked at."""
    return family(all_processes(), [root])


def session_family(session: int) -> list[int]:
    """The living processes of a session, and all their descendants.

    What is left to find a server's processes by, when its supervisor is gone and init has adopted
    its orphans.
    """
    processes = all_processes()
    members = [process.pid for process in processes.values() if process.session == session]
    living = {pid for pid in members if processes[pid].state not in "ZX"}
    return sorted(living.union(family(processes, members)))


def family(processes: dict[int, Process], roots: list[int]) -> list[int]:
    """The living descendants of ``roots``."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found, queue = [], [child for root in roots for child in children.get(root, ())]
    while queue:
        pid = queue.pop()
        queue.extend(children.get(pid, ()))
        if processes[pid].state not in "ZX":
            found.append(pid)
    return found


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        if not text:
            with open(f"/proc/{pid}/comm") as comm:
                text = comm.read().strip()
    except OSError:
        return "?"
    return text if len(text) <= 200 else text[:197] + "..."


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_all(find: Callable[[], list[int]], seconds: float) -> list[int]:
    """SIGKILL what ``find`` finds until it finds nothing (children forked meanwhile too).

    Returns those still there after ``seconds``, which no signal can end (uninterruptible sleep).
    """
    deadline = time.monotonic() + seconds
    while living := find():
        for pid in living:
            send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return living
        time.sleep(0.01)
    return []


def reap() -> dict[int, int]:
    """Collect every child that ended, adopted ones too: pid -> exit code (-N for signal N)."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


# --- shared memory ---------------------------------------------------------------------------


def list_regions() -> set[str]:
    try:
        return set(os.listdir(SHM))
    except OSError:
        return set()


def identities(names: set[str]) -> dict[Identity, str]:
    """The regions of these names that this user owns."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(SHM, name), follow_symlinks=False)
            if status.st_uid == os.geteuid():
                found[status.st_dev, status.st_ino] = name
    return found


def regions_of(pid: int) -> set[Identity]:
    """The files that a process has mapped or open. Raises OSError where it may not be seen."""
    used = set()
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[4] != b"0":
                major, minor = fields[3].split(b":")
                used.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{number}")
            used.add((status.st_dev, status.st_ino))
    return used


def remove_unused(names: set[str]) -> list[str]:
    """Remove those of these regions that no process uses; the names of those that went."""
    by_identity = identities(names & list_regions())
    for pid in all_processes() if by_identity else ():
        with contextlib.suppress(OSError):
            for identity in regions_of(pid) & by_identity.keys():
                del by_identity[identity]
    removed = []
    for name in sorted(by_identity.values()):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(SHM, name))
            removed.append(name)
    return removed


def sees_all_processes() -> bool:
    """False inside a container: others may share its /dev/shm whose processes it cannot see."""
    try:
        return os.readlink("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
    except OSError:
        return False


class Regions:
    """Which regions of /dev/shm belong to the server, and which must never be touched.

    Attributes:
        ours: regions that only the server's processes were seen using.
        foreign: regions that another process was seen using: never ours again.
    """

    def __init__(self, prefix: str, before: set[str]) -> None:
        self.prefix = prefix
        self.before = before
        self.ours: set[str] = set()
        self.foreign: set[str] = set()
        self.looked_at: set[str] = set()
        self.look_again = 0.0

    def unknown(self) -> set[str]:
        """The regions made since the start that nobody has been seen using yet."""
        return list_regions() - self.before - self.ours - self.foreign

    def due(self) -> set[str]:
        """The unknown regions, when it is time to look: at once for new ones, else seldom."""
        names, now = self.unknown(), time.monotonic()
        if not names or (names <= self.looked_at and now < self.look_again):
            return set()
        self.looked_at, self.look_again = names, now + LOOK_AGAIN_SECONDS
        return names

    def observe(self, names: set[str], tree: list[int]) -> bool:
        """Look who uses these regions; True on news."""
        by_identity = identities(names)
        processes = all_processes() if by_identity else {}
        # With those that were started since the tree was looked at: they are no strangers.
        own = set(tree).union(family(processes, tree))
        ours: set[str] = set()
        foreign: set[str] = set()
        for pid in processes:
            with contextlib.suppress(OSError):
                used = {by_identity[i] for i in regions_of(pid) if i in by_identity}
                (ours if pid in own else foreign).update(used)
        self.foreign |= foreign
        self.ours |= ours - foreign
        return bool(ours or foreign)

    def sweep(self) -> list[str]:
        """Remove what the server left. Only when none of its processes lives any more."""
        names = set(self.ours)
        for name in self.unknown():
            if self.prefix and name.startswith(self.prefix):
                names.add(name)
            elif REGION_NAMES.match(name) and sees_all_processes():
                names.add(name)  # made just before its maker died
        return remove_unused(names)


# --- temporary files -------------------------------------------------------------------------


class Scratch:
    """A folder for the temporary files of one server; without a path where there is no room.

    It is locked as long as its maker lives. Those that are not were left by a supervisor that was
    killed together with everything else, and go when the next one is made.
    """

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self.path = ""
        if len(parent) > LONGEST_TMPDIR:
            return
        with contextlib.suppress(OSError):
            for name in filter(SCRATCH_NAME.fullmatch, os.listdir(parent)):
                self.remove_if_left(os.path.join(parent, name))
            path = os.path.join(parent, SCRATCH + os.urandom(4).hex())
            os.mkdir(path, 0o700)
            self.lock(path)  # never closed: the lock ends with this process
            self.path = path

    @staticmethod
    def lock(path: str) -> int:
        """Raises OSError where another process holds it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def remove_if_left(self, path: str) -> None:
        with contextlib.suppress(OSError):
            descriptor = self.lock(path)
            remove_folder(path)
            os.close(descriptor)

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        """This environment, with the folder in it; what PyTorch compiles is kept for the next."""
        if not self.path:
            return given
        compiled = os.path.join(self.parent, f"torchinductor_{os.getuid()}")
        return {"TORCHINDUCTOR_CACHE_DIR": compiled, **given, "TMPDIR": self.path}

    def remove(self) -> None:
        remove_folder(self.path)


def remove_folder(path: str) -> None:
    if path:
        import shutil  # takes a while to import, and is needed at the end only

        shutil.rmtree(path, ignore_errors=True)


def remove_environments(folder: str = "/tmp") -> None:
    """Remove the folders that killed servers' Python backends left, if no server runs any more:
    nothing tells whose one is. Only empty ones; Triton unpacks into them what few models have."""
    if a_tritonserver_runs():
        return
    for name in filter(ENVIRONMENT_NAME.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if os.stat(path, follow_symlinks=False).st_uid == os.geteuid():
                os.rmdir(path)


def a_tritonserver_runs() -> bool:
    """Whether there is such a process on this host, whoever started it."""
    for process in all_processes().values():
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/comm") as file:
            if file.read().strip() == "tritonserver" and process.state not in "ZX":
                return True
    return False


# --- the supervisor --------------------------------------------------------------------------


class Supervisor:
    def __init__(self, config: Config, control: socket.socket, libc: ctypes.CDLL) -> None:
        self.config = config
        self.control: socket.socket | None = control
        self.libc = libc
        self.regions = Regions(config.shm_prefix, set(config.shm_before))
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

        with open(self.config.log, "ab") as log, open(os.devnull, "rb") as nothing:
            self.server = subprocess.Popen(
                self.config.command,
                env=self.scratch.environment(self.config.environment),
                stdin=nothing,
                stdout=log,
                stderr=log,
                start_new_session=True,
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
        us = os.getpid()
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
            names = self.regions.due()
            if names and self.regions.observe(names, descendants(us)):
                self.remember()
            # The second test is for a death before the pidfd was made.
            if parent in ready or os.getppid() != self.config.parent or stopping:
                return self.finish(self.config.orphan_grace)
            if self.control is not None and self.control.fileno() in ready:
                order = self.next_order()
                if order is not None:
                    return self.finish(order)

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
            soon = time.monotonic() + AFTER_EXIT_SECONDS
            self.wait(lambda: not descendants(us), min(soon, max(deadline, soon - 2.0)))
        self.regions.observe(self.regions.unknown(), descendants(us))
        orphans = [f"{pid} {command_line(pid)}" for pid in descendants(us) if pid != self.server]
        immortal = kill_all(lambda: descendants(us), 5.0)
        swept = self.regions.sweep()
        if immortal:
            # Killed, but the kernel still takes their memory apart: what counts is gone by now.
            immortal = kill_all(lambda: descendants(us), 40.0)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
