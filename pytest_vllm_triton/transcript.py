"""The requests and responses of one check, so that a report alone explains a failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# Long prompts and long streams must not make a report unreadable; the head says what it was.
_MAX_CHARACTERS = 2_000
_MAX_EXCHANGES = 12


@dataclass
class Exchange:
    """One request and what came back.

    Attributes:
        request: protocol, address and body, as text.
        response: status and body, or the error; ``"(no answer)"`` until one came.
        seconds: time from sending to the end of the answer.
    """

    request: str
    response: str = "(no answer)"
    seconds: float = 0.0

    def answered(self, text: str) -> None:
        self.response = shorten(text)


@dataclass
class Transcript:
    """What the clients of one check sent and received, in order.

    Attributes:
        dropped: how many exchanges in the middle were left out.
        error_mode_used: whether a stream was in gRPC's mode in which an error ends it.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    dropped: int = 0
    error_mode_used: bool = False

    @contextmanager
    def record(self, request: str) -> Iterator[Exchange]:
        """Note a request; the body of the ``with`` fills in the response."""
        exchange = Exchange(shorten(request))
        if len(self.exchanges) < _MAX_EXCHANGES:
            self.exchanges.append(exchange)
        else:
            # The last exchanges are those that explain a failure; of the earlier ones the first do.
            del self.exchanges[_MAX_EXCHANGES // 2]
            self.exchanges.append(exchange)
            self.dropped += 1
        started = time.monotonic()
        try:
            yield exchange
        except BaseException as error:
            exchange.answered(f"{type(error).__name__}: {error}")
            raise
        finally:
            exchange.seconds = time.monotonic() - started


def shorten(text: str) -> str:
    """The text, its middle cut out when it is too long for a report."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters]… {text[-half:]}"
