"""Show how the making of a runtime goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

#: Where lines stay, a step that goes on is told at most this often.
PLAIN_SECONDS = 15.0


@contextlib.contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """A function that shows a message; use it as the ``progress`` of ``create_runtime``."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _plain(stream)
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=stream)
    start = time.monotonic()
    with console.status("", spinner="dots") as status:

        def tell(message: str) -> None:
            status.update(f"{escape(message)} [dim]({time.monotonic() - start:.0f} s)[/]")

        yield tell


def _plain(stream: TextIO) -> Callable[[str], None]:
    start = time.monotonic()

    def tell(message: str) -> None:
        print(f"{message} ({time.monotonic() - start:.0f} s)", file=stream, flush=True)

    return sparsely(tell)


def sparsely(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same without most of the details, which follow the name of a step after ": "."""
    step = ""
    told_at = 0.0

    def tell_some(message: str) -> None:
        nonlocal step, told_at
        now = time.monotonic()
        title = message.partition(": ")[0]
        if title != step or now - told_at >= PLAIN_SECONDS:
            step, told_at = title, now
            tell(message)

    return tell_some
