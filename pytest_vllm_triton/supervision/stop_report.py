"""How a server ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StopReport:
    """What was found when a server had stopped.

    Attributes:
        exit_code: of tritonserver; -N where signal N ended it, None where it is not known.
        forced: the server did not end by itself in time and was killed.
        orphans: processes of the server that outlived it and were killed, as "pid command".
        swept: names of shared-memory regions that the server left behind and that were removed.
    """

    exit_code: int | None
    forced: bool = False
    orphans: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
