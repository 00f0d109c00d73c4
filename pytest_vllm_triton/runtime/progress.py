"""Show how the making of a runtime goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from pytest_vllm_triton.progress import Progress

#: Where lines stay, a step that goes on is told at most this often.
PLAIN_SECONDS = 15.0


@contextlib.contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Progress]:
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

        def show(message: str) -> None:
            status.update(f"{escape(message)} [dim]({time.monotonic() - start:.0f} s)[/]")

        yield show


def _plain(stream: TextIO) -> Progress:
    start = time.monotonic()

    def show(message: str) -> None:
        print(f"{message} ({time.monotonic() - start:.0f} s)", file=stream, flush=True)

    return sparsely(show)


def sparsely(progress: Progress) -> Progress:
    """The same without most of the details, which follow the name of a step after ": "."""
    step = ""
    told_at = 0.0

    def some(message: str) -> None:
        nonlocal step, told_at
        now = time.monotonic()
        title = message.partition(": ")[0]
        if title != step or now - told_at >= PLAIN_SECONDS:
            step, told_at = title, now
            progress(message)

    return some
