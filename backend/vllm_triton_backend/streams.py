"""The FIFO of one request, and the threads that hand responses to Triton.

`response_sender.send` is a blocking round trip between two processes (about 150 µs; it releases
the GIL), so it never runs on the event loop. Whatever an engine step produces is put into the
request's FIFO; a sender thread takes *all* that is there and sends it as one response. An idle
server thus sends every token at once, and a busy one sends fewer, larger responses instead of
falling behind. With many requests in flight a stream also pauses between two responses, so that
the interpreter lock is left to the engine's loop; the first and the last response never wait.
Data, errors and the final flag travel through the same FIFO, so nothing overtakes.

Facts about Triton 24.10 that shape this module:
* two threads inside `send` of the *same* sender crash the server: one thread per request at a time
* asking `is_cancelled` after the final response touches a freed response factory in the server
* a sender that lives longer than the model's `finalize` crashes the stub when it is destroyed, so
  a stream drops its sender with its final response
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from vllm_triton_backend.errors import Code, RequestError, to_triton

_FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Formatter(Protocol):
    """Builds a response from consecutive engine outputs; None when it is not worth one yet."""

    def build(self, outputs: list[Any], final: bool) -> Any | None: ...


class ResponseStream:
    """The ordered way back to one client; safe to use from any thread.

    The last item is given by `put(last=True)` or `fail`; whatever comes after it is dropped.
    """

    def __init__(self, sender: Any, formatter: Formatter | None, pool: SenderPool) -> None:
        self._sender = sender
        self._formatter = formatter
        self._pool = pool
        self._lock = threading.Lock()
        self._pending: list[Any] = []
        self._error: RequestError | None = None
        self._ended = False
        self._queued = False
        # Until then (monotonic clock), outputs that are not the last one wait for the next.
        self._paused_until = 0.0
        # Held around every use of the sender; None once the final response was sent.
        self._io_lock = threading.Lock()

    def put(self, output: Any, last: bool = False) -> None:
        """Append an engine output; `last` makes it the final response."""
        with self._lock:
            if self._ended:
                return
            self._pending.append(output)
            self._ended = last
            if self._queued or (not last and time.monotonic() < self._paused_until):
                return
            self._queued = True
        self._pool.ready(self)

    def resume(self) -> None:
        """Send what a pause held back: called now and then, in case no further output comes."""
        with self._lock:
            if self._queued or not self._pending or time.monotonic() < self._paused_until:
                return
            self._queued = True
        self._pool.ready(self)

    def fail(self, error: RequestError) -> None:
        """End with `error`, after what is already in the FIFO, unless it has ended before."""
        with self._lock:
            if self._ended:
                return
            self._error = error
            self._ended = True
            if self._queued:
                return
            self._queued = True
        self._pool.ready(self)

    def is_cancelled(self) -> bool:
        """Whether the client gave up; False while a send is under way or after the end."""
        if not self._io_lock.acquire(blocking=False):
            return False
        try:
            return self._sender is not None and bool(self._sender.is_cancelled())
        finally:
            self._io_lock.release()

    def flush(self) -> None:
        """Send what is pending as one response. Called by the pool, one thread at a time."""
        with self._lock:
            outputs, self._pending = self._pending, []
            error, ended = self._error, self._ended
        try:
            self._send(outputs, error, ended)
        except RequestError as failure:
            self._end_with(failure)
        except Exception as failure:
            self._end_with(RequestError(Code.INTERNAL, f"Error generating stream: {failure}"))
        pause = self._pool.pause()
        with self._lock:
            self._paused_until = time.monotonic() + pause if pause else 0.0
            must_end = self._ended and self._sender is not None
            self._queued = must_end or (bool(self._pending) and not pause)
            again = self._queued
        if again:
            self._pool.ready(self)

    def _send(self, outputs: list[Any], error: RequestError | None, ended: bool) -> None:
        if self._sender is None:
            return
        final = ended and error is None
        if outputs and self._formatter is not None:
            response = self._formatter.build(outputs, final)
            if response is not None:
                self._transmit(response, final)
        if error is not None:
            self._end_with(error)

    def _end_with(self, error: RequestError) -> None:
        with self._lock:
            self._ended = True
            self._pending.clear()
        if self._sender is not None:
            response = pb_utils.InferenceResponse(error=to_triton(error, pb_utils))
            # The client may be gone and the sender with it; there is nobody left to tell.
            with contextlib.suppress(Exception):
                self._transmit(response, True)

    def _transmit(self, response: Any, final: bool) -> None:
        with self._io_lock:
            sender = self._sender
            if not final:
                sender.send(response)
                return
            # Dropped before the call: if it raises, the sender must not be used again.
            self._sender = None
            try:
                sender.send(response, flags=_FINAL)
            finally:
                del sender
                self._pool.closed(self)


class SenderPool:
    """Threads that flush the streams that have something to send, in turn.

    Args:
        threads: number of threads; see `Parameters.sender_threads`.
        on_closed: called after a stream's final response was handed over.
        pause: seconds between two responses of one stream, asked anew after each response.
    """

    def __init__(
        self,
        threads: int,
        on_closed: Callable[[ResponseStream], None],
        pause: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.pause = pause
        self._ready: queue.SimpleQueue[ResponseStream | None] = queue.SimpleQueue()
        self._on_closed = on_closed
        self._threads = [
            threading.Thread(target=self._run, name=f"vllm-sender-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def ready(self, stream: ResponseStream) -> None:
        self._ready.put(stream)

    def closed(self, stream: ResponseStream) -> None:
        self._on_closed(stream)

    def close(self, timeout: float) -> None:
        """Stop the threads after what is queued now."""
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join(timeout)
        # A stream that a thread was sending for had more to send: its last response.
        with contextlib.suppress(queue.Empty):
            while True:
                if (stream := self._ready.get_nowait()) is not None:
                    stream.flush()

    def _run(self) -> None:
        while (stream := self._ready.get()) is not None:
            stream.flush()
