"""The requests and responses of one check, so that a report alone explains a failure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# Long prompts and long streams must not make a report unreadable; the head says what it was.
_MAX_CHARACTERS = 2_000
_MAX_EXCHANGES = 12
_MAX_EXCERPT = 12

# The response of a request that has none yet.
NO_ANSWER = "(no answer)"

T = TypeVar("T")


@dataclass
class Exchange:
    """One request and what came back.

    Attributes:
        request: protocol, address and body, as text.
        response: status and body, and the error if there was one; `NO_ANSWER` until one came.
        seconds: time from sending to the end of the answer.
    """

    request: str
    response: str = NO_ANSWER
    seconds: float = 0.0

    def asked(self, text: str) -> None:
        self.request = shorten(text)

    def answered(self, text: str) -> None:
        self.response = shorten(text)

    def failed(self, error: BaseException) -> None:
        """Add the error to what has come: a check may fail because of that, while it reads."""
        came = "" if self.response == NO_ANSWER else f"{self.response}\n"
        self.response = f"{came}{shorten(f'{type(error).__name__}: {error}')}"


@dataclass
class Transcript:
    """What the clients of one check sent and received, in order.

    Attributes:
        dropped: how many exchanges in the middle were left out.
        triton_may_crash: whether something was done that may crash Triton itself: see
            `note_crash_risk`.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    dropped: int = 0
    triton_may_crash: bool = False

    def note_crash_risk(self) -> None:
        """Something is done at which Triton 24.10 itself crashes now and then, whatever the backend
        does: a stream in gRPC's mode in which an error ends it, the cancellation of a stream
        (server#7368, server#8034), or the call of the model under test by another one.

        `ServerSession` reads it: if the server has crashed then, it makes the check again on a new
        one, instead of blaming the backend.
        """
        self.triton_may_crash = True

    @contextmanager
    def record(self, request: str) -> Iterator[Exchange]:
        """Note a request; the body of the ``with`` fills in the response."""
        exchange = Exchange(shorten(request))
        if len(self.exchanges) >= _MAX_EXCHANGES:
            # The last exchanges are those that explain a failure; of the earlier ones the first do.
            del self.exchanges[_MAX_EXCHANGES // 2]
            self.dropped += 1
        self.exchanges.append(exchange)
        started = time.monotonic()
        try:
            yield exchange
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            exchange.seconds = time.monotonic() - started


class Excerpt(Generic[T]):
    """The first and the last of many things.

    Attributes:
        count: of all of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[T] = []
        self._last: deque[T] = deque(maxlen=_MAX_EXCERPT // 2)

    def add(self, thing: T) -> None:
        self.count += 1
        if len(self._first) < _MAX_EXCERPT // 2:
            self._first.append(thing)
        else:
            self._last.append(thing)

    def shown(self, show: Callable[[T], str]) -> str:
        """What is kept, as text, and how many are left out between."""
        left_out = self.count - len(self._first) - len(self._last)
        middle = [f"…[{left_out} more]…"] if left_out else []
        return "; ".join([*map(show, self._first), *middle, *map(show, self._last)])


def shorten(text: str) -> str:
    """The text, its middle cut out when it is too long for a report."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters]… {text[-half:]}"
