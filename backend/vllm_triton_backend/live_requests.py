"""The requests between their submission and their last response."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_triton_backend.adapter import Handle
from vllm_triton_backend.errors import SHUTTING_DOWN, Code, RequestError
from vllm_triton_backend.lora import Adapter
from vllm_triton_backend.requests import EmbedRequest, GenerateRequest
from vllm_triton_backend.streams import ResponseStream


@dataclass(eq=False, slots=True)
class Live:
    """One of them.

    `handle` is set once the engine has it; `ended` once its stream got its last item (set on the
    event loop only); `cancelling` once its client was seen to be gone. `task` brings it into the
    engine or takes it out, and is None in between.
    """

    number: int
    request: GenerateRequest | EmbedRequest
    params: Any
    adapter: Adapter | None
    stream: ResponseStream
    handle: Handle | None = None
    ended: bool = False
    cancelling: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class LiveRequests:
    """All of them, by their streams; safe to use from any thread.

    Args:
        limit: requests beyond this number are refused with UNAVAILABLE; 0 for no limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_stream: dict[ResponseStream, Live] = {}
        self._accepting = True
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._by_stream)

    def is_idle(self) -> bool:
        """Whether there is none."""
        return not self._by_stream

    def all(self) -> list[Live]:
        """Those that there are now."""
        with self._lock:
            return list(self._by_stream.values())

    def add(self, live: Live) -> None:
        """One more.

        Raises:
            RequestError: UNAVAILABLE, after `refuse_more` or over the limit.
        """
        with self._lock:
            if not self._accepting:
                raise RequestError(Code.UNAVAILABLE, SHUTTING_DOWN)
            if self._limit and len(self._by_stream) >= self._limit:
                raise RequestError(
                    Code.UNAVAILABLE,
                    f"Model is busy: {self._limit} requests are in flight (MAX_INFLIGHT_REQUESTS)",
                )
            self._by_stream[live.stream] = live

    def remove(self, stream: ResponseStream) -> Live | None:
        """The one of this stream, which is no longer live; None if it was not."""
        with self._lock:
            live = self._by_stream.pop(stream, None)
            if not self._by_stream:
                self._idle.notify_all()
        return live

    def refuse_more(self) -> None:
        """Let no other request in."""
        with self._lock:
            self._accepting = False

    def wait_until_idle(
        self, timeout: float, worthwhile: Callable[[], bool] = lambda: True
    ) -> None:
        """Wait until none is left, or waiting is no longer `worthwhile`."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._by_stream and (left := deadline - time.monotonic()) > 0:
                # Woken early to notice an engine that died meanwhile.
                self._idle.wait(min(left, 0.5))
                if not worthwhile():
                    return
