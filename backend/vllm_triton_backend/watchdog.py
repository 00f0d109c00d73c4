"""No engine process outlives the stub, however the stub dies.

A tiny process of its own session holds the read end of a pipe whose write end only the stub has.
When the stub is gone, by SIGKILL too, the pipe closes, and the watchdog ends what the stub left:

* every process of the stub's process group, and every one that carries the stub's mark in its
  environment, wherever it has been reparented to since. Neither would do alone: the kernel shows
  no mark of what was only forked (as vLLM forks its engine on GPUs) or has set its title (as
  vLLM's processes do), and a process may leave the group
* the shared memory that these processes mapped
* the sockets over which they talked, which vLLM leaves in the temporary directory
* Triton's own shared-memory region of this stub, once the server is gone as well

Python's resource tracker is one of them and is spared: when the last engine process is
gone it unlinks their semaphores and shared memory, and ends by itself.

PR_SET_PDEATHSIG was looked at and not taken: it follows the *thread* that forked, and is lost when
the child execs a set-uid file or forks again.

The watching side runs `main` from this file's text with `python -I -S -c`, so everything it needs
is the standard library and is inside `main`'s module.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

MARK = "TRITON_VLLM_BACKEND_STUB"
# What a stub that ends by itself sends first; a killed one sends nothing.
_ORDERLY_END = b"bye"
_SHM = Path("/dev/shm")
_TERM_SECONDS = 2.5
_KILL_SECONDS = 3.0
_TRACKER_SECONDS = 2.0


class Watchdog:
    """The stub's side.

    Must be started before the engine, which inherits the mark. `close` is the orderly end.
    """

    def __init__(self, shm_regions: Iterable[str] = ()) -> None:
        mark = uuid.uuid4().hex
        os.environ[MARK] = mark
        # Unlike a socket's file, the directory of all sockets is known beforehand.
        self._sockets = tempfile.mkdtemp(prefix="triton-vllm-")
        os.environ.setdefault("VLLM_RPC_BASE_PATH", self._sockets)
        # Bytes: in the stub's C locale Python cannot encode a text for the command line.
        source = (_own_source() + "\nmain(sys.argv[1:])\n").encode()
        arguments = [mark, str(os.getpid()), str(os.getppid()), self._sockets, *shm_regions]
        # A group of its own: it has the stub's process id. Besides, Ctrl-C at a terminal reaches
        # the server alone then, and an engine that still has requests to finish lives on.
        os.setpgid(0, 0)
        reader, self._writer = os.pipe()
        # Where a forked child held the pipe, the stub's death would not close it.
        os.register_at_fork(after_in_child=self._forget_pipe)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", source, *arguments],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                close_fds=True,
            )
        except BaseException:
            self._forget_pipe()
            Path(self._sockets).rmdir()
            raise
        finally:
            os.close(reader)

    def _forget_pipe(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self, timeout: float = _TERM_SECONDS + _KILL_SECONDS + _TRACKER_SECONDS + 1) -> None:
        """Let the watchdog end whatever is left of the engine now, and wait for it."""
        if self._writer < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._writer, _ORDERLY_END)
        self._forget_pipe()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _own_source() -> str:
    import inspect

    return inspect.getsource(sys.modules[__name__])


def stub_shm_regions() -> list[str]:
    """Names of Triton's shared-memory regions on the command line of this process's stub
    (`triton_python_backend_stub <model> <region> …`); [] outside a stub."""
    try:
        words = Path("/proc/self/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []
    if len(words) < 3 or not words[0].endswith("triton_python_backend_stub"):
        return []
    name = words[2].lstrip("/")
    return [name] if name and "/" not in name and _shm_exists(name) else []


# -- the watchdog's side -------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Wait for the stub's end, then clean up."""
    mark, stub, server, sockets, *regions = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server_birth = birth(int(server))
    heard = b""
    while data := os.read(0, 4096):
        heard += data
    spare = {os.getpid(), int(stub)}
    # What the engine maps and no resource tracker knows (vLLM's CPU communicator) must be noted
    # while somebody still maps it.
    files: set[str] = set()
    for pid in marked(mark, int(stub), spare):
        files |= shm_files(pid)
    end_marked(mark, int(stub), spare)
    shutil.rmtree(sockets, ignore_errors=True)
    deadline = time.monotonic() + _TRACKER_SECONDS
    while files and marked(mark, int(stub), spare, trackers=True) and time.monotonic() < deadline:
        time.sleep(0.05)
    unlink(files - set(regions))
    if heard != _ORDERLY_END and server_birth is not None:
        # The server owns its regions as long as it lives, and may fail to remove them at exit.
        while birth(int(server)) == server_birth and any(map(_shm_exists, regions)):
            time.sleep(1)
        if birth(int(server)) != server_birth:
            unlink(regions)


def end_marked(mark: str, group: int, spare: set[int]) -> None:
    """SIGTERM, then SIGKILL, every marked process."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while pids := marked(mark, group, spare):
            for pid in pids - signalled:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            signalled |= pids
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def marked(mark: str, group: int, spare: set[int], trackers: bool = False) -> set[int]:
    """Living processes with `mark` in their environment or of this process group, less `spare`;
    resource trackers only with `trackers`."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spare:
            continue
        try:
            state, _, process_group = _status(entry)[:3]
            if state == b"Z":
                # Nothing is left to end, and its parent may be the stub, which waits for this.
                continue
            of_group = int(process_group) == group
            if not of_group and wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if not trackers and b"resource_tracker" in (entry / "cmdline").read_bytes():
                continue
        except OSError:
            continue
        found.add(int(entry.name))
    return found


def shm_files(pid: int) -> set[str]:
    """Names below /dev/shm that the process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_bytes().decode("utf-8", "replace").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        _, slash, name = line.partition(" /dev/shm/")
        if slash and "/" not in name and not name.endswith(" (deleted)"):
            found.add(name)
    return found


def unlink(names: Iterable[str]) -> None:
    """Remove files below /dev/shm; missing ones are fine."""
    for name in names:
        with contextlib.suppress(OSError):
            (_SHM / name).unlink()


def _shm_exists(name: str) -> bool:
    return (_SHM / name).exists()


def birth(pid: int) -> str | None:
    """Start time of a process, which together with the pid names it; None if there is none."""
    try:
        fields = _status(Path(f"/proc/{pid}"))
    except OSError:
        return None
    return None if fields[0] == b"Z" else fields[19].decode()


def parent_of(pid: int) -> int | None:
    """The process id of the parent; None if there is no such process."""
    try:
        return int(_status(Path(f"/proc/{pid}"))[1])
    except OSError:
        return None


def _status(process: Path) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the state, the third one, on."""
    return (process / "stat").read_bytes().rsplit(b")", 1)[1].split()
