"""Files with their sizes and digests, and one long stream in pieces of a size that can travel."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pytest_vllm_triton.errors import UserError

_BLOCK = 2**20


@dataclass(frozen=True)
class StoredFile:
    """What a file must be for it to be taken for whole.

    Attributes:
        name: in its folder.
        size: in bytes.
        sha256: of its content, in hexadecimal digits.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        return cls(path.name, path.stat().st_size, _digest(path))

    def check(self, folder: Path) -> None:
        """See that it is in this folder, whole.

        Raises:
            UserError: it is not.
        """
        path = folder / self.name
        if not path.is_file():
            raise UserError(f"{self.name} of the bundle in {folder} is missing: copy it again.")
        size = path.stat().st_size
        if size != self.size:
            raise UserError(
                f"{self.name} of the bundle in {folder} has {size} bytes instead of {self.size}: "
                "copy it again."
            )
        if _digest(path) != self.sha256:
            raise UserError(
                f"{self.name} of the bundle in {folder} is damaged (its SHA-256 is another one): "
                "copy it again."
            )


class PieceWriter(io.RawIOBase):
    """A stream that is written as ``piece-000``, ``piece-001``, … of one folder."""

    def __init__(self, folder: Path, piece_size: int) -> None:
        self.pieces: list[StoredFile] = []
        self._folder = folder
        self._piece_size = piece_size
        self._file: IO[bytes] | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            if self._file is None:
                self._file = (self._folder / f"piece-{len(self.pieces):03}").open("wb")
            room = self._piece_size - self._file.tell()
            self._file.write(rest[:room])
            rest = rest[room:]
            if self._file.tell() == self._piece_size:
                self._end_piece()
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._end_piece()
        super().close()

    def _end_piece(self) -> None:
        assert self._file is not None
        self._file.close()
        self.pieces.append(StoredFile.of(Path(self._file.name)))
        self._file = None


class PieceReader(io.RawIOBase):
    """The stream that was written in these pieces."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._ahead = list(paths)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "tarfile reads blocks"
        found = b""
        while len(found) < size:
            if self._file is None:
                if not self._ahead:
                    break
                self._file = self._ahead.pop(0).open("rb")
            data = self._file.read(size - len(found))
            found += data
            if not data:
                self._file.close()
                self._file = None
        return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
