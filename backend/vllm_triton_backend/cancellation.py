"""Requests whose clients have given up, which nobody tells a backend: it has to ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vllm_triton_backend.live_requests import Live, LiveRequests

# One round over all live requests costs about 40 µs each (a round trip to the server); at most an
# eighth of a thread is spent on it.
_POLL_SECONDS = 0.05
_POLL_SHARE = 8


class CancellationWatch:
    """A thread that looks at all live requests in turn, again and again.

    On its way it lets their streams send what a pause held back.

    Args:
        on_cancelled: called, in that thread, with each request whose client has given up, once.
    """

    def __init__(
        self, live: LiveRequests, on_cancelled: Callable[[Live], None], log: Callable[[str], None]
    ) -> None:
        self._live = live
        self._on_cancelled = on_cancelled
        self._log = log
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-cancel", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = _POLL_SECONDS
        while not self._stopped.wait(pause):
            candidates = [live for live in self._live.all() if not live.ended]
            started = time.monotonic()
            for live in candidates:
                try:
                    self._look_at(live)
                except Exception as error:
                    # Without this thread no other request could be cancelled either.
                    self._log(f"[vllm] Looking for a cancellation failed: {error}")
            pause = max(_POLL_SECONDS, _POLL_SHARE * (time.monotonic() - started))

    def _look_at(self, live: Live) -> None:
        live.stream.resume()
        if live.cancelling:  # the event loop is late
            return
        if live.stream.is_cancelled():
            live.cancelling = True
            self._log(f"[vllm] Cancelling the request {live.request.request_id}".rstrip())
            self._on_cancelled(live)
