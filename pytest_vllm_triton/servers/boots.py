"""What is kept of each start of a server: for the header, the summary and the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Boot:
    """One start of a server.

    Attributes:
        purpose: why it was started.
        seconds: until it was ready, or had failed.
        ready: whether it got ready.
        command: a line for a shell that starts the same server; "" if there is none.
    """

    purpose: str
    seconds: float
    ready: bool
    command: str = ""
