"""Stubs that Triton gave up while their model loaded: a defect of Triton, seen and undone.

While a model loads, its stub must show a sign of life every second. One that was late once, on a
busy host, is given up, and the server waits for its end (``StubLauncher::WaitForStubProcess``)
without telling it to end. So the stub lives on, and the load is never answered. Once the stub is
ended by somebody else, the load fails at once, and can be asked for again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time

from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.launchers.host_proc import children, waited_for

#: Longer than a stub takes to end that was told to.
PATIENCE_SECONDS = 10.0
#: How often a model is loaded, or a server started, until it goes well: a host that stands still
#: for a second does so again.
ATTEMPTS = 4
POLL_SECONDS = 1.0
#: All that Triton says of a load whose stub it gave up, also if the stub failed for a reason.
NOT_HEALTHY = re.compile(r"Stub process '[^']*' is not healthy\.\W*$")
#: In the log of a server that a race of Triton 24.10's with a starting stub ended (signal 6).
LOCK_DESTROYED = "boost::interprocess::lock_exception"


class StalledStubWatch:
    """While it is entered, ends stubs that a server gives up, of those that have started since.

    Where the kernel does not show what the server does (another user's, a remote one) there seem to
    be none.

    Attributes:
        ended_one: whether there was one.
    """

    def __init__(self, handle: ServerHandle) -> None:
        self.ended_one = False
        self._handle = handle
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StalledStubWatch:
        self._server = self._handle.host_pid() if self._handle.owned else None
        # An earlier stub may be waited for because its model is being unloaded.
        self._earlier = children(self._server) if self._server else set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        since: dict[int, float] = {}
        while self._server and not self._over.wait(POLL_SECONDS):
            now = time.monotonic()
            awaited = waited_for(self._server) - self._earlier
            since = {pid: since.get(pid, now) for pid in awaited}
            for pid in (pid for pid in awaited if now - since[pid] > PATIENCE_SECONDS):
                self.ended_one = True
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
