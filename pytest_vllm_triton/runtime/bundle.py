"""A folder that holds all packages of a runtime, for hosts that reach no package index.

It has a manifest and either the wheels themselves or, where those are too large to travel, a tar
archive of them in pieces.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.pieces import PieceReader, StoredFile
from pytest_vllm_triton.runtime.pip import Pip
from pytest_vllm_triton.runtime.recipe import Accelerator
from pytest_vllm_triton.runtime.source import PINS, Step

BUNDLE_MANIFEST = "bundle.json"
#: Count up when bundles change in a way that older readers do not understand.
FORMAT = 1
#: The folder of the wheels that were in pieces, in the root of an environment.
UNPACKED = "wheels"
#: What bytecode, and the last of pip's temporary files, add to the size of installed wheels.
ROOM = 1.3


@dataclass(frozen=True)
class Bundle:
    """A source of packages that needs no index.

    Attributes:
        folder: where it is.
        python: the version of Python that it is for, such as 3.12.
        glibc: the oldest C library that it is for, such as (2, 35).
        host_torch: the versions of PyTorch that the host has to have, such as "==2.11.0"; "" if
            the bundle has PyTorch itself.
        pins: what to install, one requirement each.
        in_pieces: whether its files are the pieces of an archive, and not wheels.
        unpacked_size: of what the wheels hold, in bytes.
        files: all of it but the manifest.
    """

    folder: Path
    accelerator: Accelerator
    vllm_version: str
    python: str
    glibc: tuple[int, int]
    host_torch: str
    pins: tuple[str, ...]
    in_pieces: bool
    unpacked_size: int
    files: tuple[StoredFile, ...]

    @classmethod
    def at(cls, folder: Path) -> Bundle:
        """The bundle in this folder.

        Raises:
            UserError: there is none, or none that this version of the plugin can use.
        """
        path = folder / BUNDLE_MANIFEST
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{folder} holds no bundle: {path}: {error.strerror}.") from None
        except ValueError:
            raise UserError(f"{path} is damaged: copy it again.") from None
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise UserError(
                f"The bundle in {folder} was made by another version of pytest-vllm-triton: make "
                "it again with this one."
            )
        try:
            bundle = cls(
                folder=folder.absolute(),
                accelerator=recipe.ACCELERATORS[facts["accelerator"]],
                vllm_version=facts["vllm"],
                python=facts["python"],
                glibc=_glibc(facts["platform"]),
                host_torch=facts["host_torch"],
                pins=tuple(facts["pins"]),
                in_pieces=facts["in_pieces"],
                unpacked_size=facts["unpacked_size"],
                files=tuple(StoredFile(**file) for file in facts["files"]),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} is damaged: copy it again.") from None
        recipe.check_vllm_version(bundle.vllm_version, bundle.accelerator)
        if not set(bundle._recipe_pins) <= set(bundle.pins):
            raise UserError(
                f"The bundle in {folder} is of another recipe than this pytest-vllm-triton's, "
                f"which has {', '.join(bundle._recipe_pins)}: make it again with this version."
            )
        return bundle

    def save(self) -> None:
        """Write the manifest. It comes last: a folder without one is no bundle."""
        facts = {
            "format": FORMAT,
            "accelerator": self.accelerator.name,
            "vllm": self.vllm_version,
            "triton": recipe.TRITON_VERSION,
            "python": self.python,
            "platform": "manylinux_{}_{}_x86_64".format(*self.glibc),
            "host_torch": self.host_torch,
            "pins": self.pins,
            "in_pieces": self.in_pieces,
            "unpacked_size": self.unpacked_size,
            "files": [asdict(file) for file in self.files],
        }
        text = json.dumps(facts, indent=2) + "\n"
        (self.folder / BUNDLE_MANIFEST).write_text(text, encoding="utf-8")

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    # as a source

    @property
    def disk_gib(self) -> float:
        unpacked_wheels = self.size if self.in_pieces else 0
        return (self.unpacked_size * ROOM + unpacked_wheels) / 2**30

    def steps(self) -> Sequence[Step]:
        return (("checking the bundle", self.prepare),)

    def pip(self, environment: Environment) -> Pip:
        return Pip(environment.python, environment.root, wheels=self._wheels(environment))

    def prepare(self, environment: Environment, progress: Progress) -> None:
        """See that all files are whole, and unpack them where they are pieces."""
        for file in self.files:
            progress(file.name)
            file.check(self.folder)
        if self.in_pieces:
            self._unpack(self._wheels(environment))
        (environment.root / PINS).write_text(json.dumps(self.pins))

    def _wheels(self, environment: Environment) -> Path:
        return environment.root / UNPACKED if self.in_pieces else self.folder

    def _unpack(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        stream = PieceReader(self.folder / file.name for file in self.files)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None or Path(member.name).name != member.name:
                    raise UserError(f"The bundle in {self.folder} holds more than wheels.")
                with (folder / member.name).open("wb") as file:
                    shutil.copyfileobj(content, file)

    @property
    def _recipe_pins(self) -> tuple[str, ...]:
        return (
            self.accelerator.vllm_pin(self.vllm_version),
            f"numpy=={recipe.NUMPY_VERSION}",
            recipe.TRITON_PIN,
        )


def oldest_glibc(wheels: Iterable[str], least: tuple[int, int]) -> tuple[int, int]:
    """The oldest C library, but no older than ``least``, for which wheels of these names are."""
    needed = [least]
    for wheel in wheels:
        # A wheel with several tags is for the oldest of them.
        tags = (tag.platform for tag in parse_wheel_filename(wheel)[3])
        versions = [_glibc(tag) for tag in tags if tag.startswith("manylinux_")]
        needed.append(min(versions, default=least))
    return max(needed)


def _glibc(tag: str) -> tuple[int, int]:
    """Of a platform's tag, such as manylinux_2_35_x86_64; raises ValueError for any other."""
    found = re.fullmatch(r"manylinux_(\d+)_(\d+)_x86_64", tag)
    if found is None:
        raise ValueError(f"{tag!r} is no platform of ours")
    return int(found[1]), int(found[2])
