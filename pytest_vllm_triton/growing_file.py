"""A log that another process writes, read line by line while it grows."""

from __future__ import annotations

from pathlib import Path


class GrowingFile:
    """A text file to whose end others write; it may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._partial = b""

    def new_lines(self) -> list[str]:
        """The lines that have been completed since the last call; each is told once."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        self._position += len(new)
        *complete, self._partial = (self._partial + new).split(b"\n")
        return [line.decode("utf-8", "replace") for line in complete]
