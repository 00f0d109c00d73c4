"""Ctrl-C during a check."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def killed_at_interrupt(kill: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C kills the servers before KeyboardInterrupt is raised.

    On its way that exception passes code that waits: for threads that have asked a server, for
    models to be unloaded, which Triton does only when no other is being loaded. All that can take a
    minute; from servers that are gone the answer comes at once.

    Does nothing where somebody else has a handler, or in another thread than the main one, in which
    Python allows none.
    """
    default = signal.default_int_handler
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not default:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        kill()
        default(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
