"""No engine process outlives the stub, however the stub dies.

A tiny process of its own session holds the read end of a pipe whose write end only the stub has.
When the stub is gone, by SIGKILL too, the pipe closes, and the watchdog ends what the stub left:

* processes that carry the stub's mark in their environment (everything that was exec'ed below
  it, wherever it has been reparented to), and the processes that the stub named
* Triton's own shared-memory region of this stub, if the server is gone as well

Python's resource tracker also carries the mark and is spared: when the last engine process is
gone it unlinks their semaphores and shared memory, and ends by itself.

PR_SET_PDEATHSIG was looked at and not taken: it follows the *thread* that forked, and is lost when
the child execs a set-uid file or forks again.

The watched side runs `main` from this file's text with `python -I -S -c`, so everything it needs
is the standard library and is inside `main`'s module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable

MARK = "TRITON_VLLM_BACKEND_STUB"
_TERM_SECONDS = 4.0
_KILL_SECONDS = 4.0


class Watchdog:
    """The stub's side.

    Must be started before the engine, which inherits the mark. `close` ends it in peace.
    """

    def __init__(self, shm_regions: Iterable[str] = ()) -> None:
        mark = uuid.uuid4().hex
        os.environ[MARK] = mark
        # Bytes: in the stub's C locale Python cannot encode a text for the command line.
        source = (_own_source() + "\nmain(sys.argv[1:])\n").encode()
        arguments = [mark, str(os.getpid()), str(os.getppid()), *shm_regions]
        reader, self._writer = os.pipe()
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
            os.close(self._writer)
            raise
        finally:
            os.close(reader)

    def close(self, timeout: float = _TERM_SECONDS + _KILL_SECONDS + 2) -> None:
        """Let the watchdog end whatever is left of the engine now, and wait for it."""
        if self._writer < 0:
            return
        os.close(self._writer)
        self._writer = -1
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
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return []
    if len(words) < 3 or not words[0].endswith("triton_python_backend_stub"):
        return []
    name = words[2].lstrip("/")
    return [name] if name and "/" not in name and os.path.exists(f"/dev/shm/{name}") else []


# -- the watchdog's side -------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Wait for the stub's end, then clean up."""
    mark, stub, server, *regions = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server_birth = _birth(int(server))
    while True:
        try:
            if not os.read(0, 4096):
                break
        except InterruptedError:
            continue
    end_marked(mark, {os.getpid(), int(stub)})
    if regions:
        _unlink_if_server_gone(int(server), server_birth, regions)


def end_marked(mark: str, spare: set[int]) -> None:
    """SIGTERM, then SIGKILL, every process with `mark` in its environment."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while pids := marked(mark, spare):
            for pid in pids - signalled:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            signalled |= pids
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def marked(mark: str, spare: set[int]) -> set[int]:
    """Living processes with `mark` in their environment, less `spare` and resource trackers.

    A forked child shows its parent's environment block, so children of marked processes are
    found with them.
    """
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spare:
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if wanted not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if b"resource_tracker" in file.read():
                    continue
        except OSError:
            continue
        found.add(int(entry))
    return found


def _unlink_if_server_gone(server: int, birth: str | None, regions: list[str]) -> None:
    # A stub that dies because its server died does so within about a second of it.
    deadline = time.monotonic() + 2
    while birth is not None and _birth(server) == birth:
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)
    for region in regions:
        with contextlib.suppress(OSError):
            os.unlink(f"/dev/shm/{region}")


def _birth(pid: int) -> str | None:
    """Start time of a process, which together with the pid names it; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else fields[19].decode()
