"""What both wire clients share: a lane carries one request at a time and notes what arrives.

While the load runs a client only notes (time, bytes); everything is parsed and checked afterwards,
so that the client costs little, and the same, for every system.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

clock = time.monotonic


@dataclass(slots=True)
class Record:
    """One request on the wire: when it was sent, the raw answer, when it ended, and how."""

    sent: float = 0.0
    ended: float = 0.0
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


class Lane(ABC):
    """Sends one request after the other; `on_end` is called with it when an answer has ended."""

    on_end: Callable[[Lane], None]
    record: Record

    @abstractmethod
    def send(self, payload: bytes, record: Record) -> None:
        """Send a prepared request; what comes back is noted in `record`."""

    @abstractmethod
    def cancel(self) -> None:
        """Give the request up, as a client that goes away does; `on_end` follows."""

    def _end(self, error: str | None = None) -> None:
        self.record.ended = clock()
        self.record.error = error
        self.on_end(self)


class Wire(ABC):
    """One way to talk to one server."""

    @abstractmethod
    async def connect(self, count: int) -> list[Lane]:
        """Lanes that can send at once."""

    @abstractmethod
    def payload(self, prompt: str) -> bytes:
        """A request, ready to be sent."""

    @abstractmethod
    def texts(self, record: Record) -> Iterator[tuple[float, str]]:
        """(arrival, text) of each response; raises ValueError with the server's error message."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""
