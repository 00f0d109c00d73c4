"""How what takes long tells its caller how it goes."""

from __future__ import annotations

from collections.abc import Callable

#: Hears, in one line, what is being done now.
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """The progress that nobody wants to hear of."""
