"""The faults: what each one changes, and which requirements it violates.

Those of ``table/`` are mistakes that real changes to a backend make, by the group of what they
violate; those of ``harmless.toml`` violate nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pytest_vllm_triton import assets, requirements
from pytest_vllm_triton.toml_files import read_toml

TABLE = Path(__file__).with_name("table")
HARMLESS = Path(__file__).with_name("harmless.toml")
EXEMPT = Path(__file__).with_name("exempt.toml")
# These read an experiment of minutes; a fault whose group they are in has to name them.
LONG = frozenset({"CON-003", "ERR-019", "ERR-022", "MET-001", "MET-013", "STR-012"})


class StaleFault(Exception):
    """The line that a fault changes is not there any more: the fault has to be renewed."""


@dataclass(frozen=True)
class Fault:
    """One mistake, as one small edit of our backend's source.

    Attributes:
        what: the mistake, in a sentence.
        file: of ``backend/``, or of ``fixtures/`` for the sample client.
        old: the text that is replaced, which must be there exactly once.
        new: what takes its place.
        red: the requirements that the fault violates, always.
        may: those that it violates or not, as timing happens to be.
        checks: what is run: groups and requirements; default: the groups of `red` and `may`.
        more: text appended to the file.
        gpus: how many it takes to see it.
        alone: never tried on one server together with other faults.
        reaches_others: it reaches other servers of this host, too, or needs the host for itself:
            tried last, while no other runs.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    red: frozenset[str]
    may: frozenset[str] = frozenset()
    checks: frozenset[str] = frozenset()
    more: str = ""
    gpus: int = 0
    alone: bool = False
    reaches_others: bool = False

    @cached_property
    def selection(self) -> frozenset[str]:
        """The requirements that are run to find it; nothing stands for all."""
        names = self.checks or frozenset(key.partition("-")[0] for key in self.allowed)
        members = {
            key
            for key, requirement in load_catalogue().items()
            if requirement.group in names and key not in LONG - self.allowed
        }
        return frozenset(members | names & set(load_catalogue()))

    @property
    def allowed(self) -> frozenset[str]:
        """Every requirement that may be red because of it."""
        return self.red | self.may

    def in_text(self, source: str) -> str:
        """The text of its file, with the mistake.

        Raises:
            StaleFault: the text to replace is not there exactly once.
            SyntaxError: Python cannot read the result.
        """
        found = source.count(self.old)
        if found != 1:
            raise StaleFault(f"{self.name}: {self.file} holds its line {found} times, not once")
        changed = source.replace(self.old, self.new) + self.more
        compile(changed, self.file, "exec")
        return changed

    def path(self, backend: Path, fixtures: Path) -> Path:
        """Its file, in these folders."""
        return (fixtures if self.file.startswith("samples/") else backend) / self.file


@cache
def load_catalogue() -> requirements.Catalogue:
    """The catalogue of requirements, read once."""
    return requirements.load_catalogue()


def load_faults(path: Path = TABLE) -> dict[str, Fault]:
    """All faults of a file, or of a folder's files, by name.

    Raises:
        TypeError: an entry lacks a field or has an unknown one.
        ValueError: two files have a fault of the same name.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    entries: dict[str, Any] = {}
    for file in files:
        found = read_toml(file)
        if twice := entries.keys() & found.keys():
            raise ValueError(f"{file}: {', '.join(sorted(twice))} is in another file, too")
        entries.update(found)
    sets = ("red", "may", "checks")
    return {
        name: Fault(
            name=name,
            **{key: frozenset(value) if key in sets else value for key, value in entry.items()},
        )
        for name, entry in entries.items()
    }


def load_exempt(path: Path = EXEMPT) -> dict[str, str]:
    """Requirements that no fault of the backend can violate -> the reason."""
    reasons: dict[str, str] = {}
    for group in read_toml(path).values():
        reasons.update(dict.fromkeys(group["requirements"], group["reason"]))
    return reasons


def copy_sources(tree: Path, faults: Iterable[Fault]) -> Path:
    """The backend with these faults, in ``tree``; returns its folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(assets.backend_dir(), tree / "backend", ignore=ignore)
    # The suite takes a sample client that lies beside the backend for the backend's own.
    shutil.copytree(assets.fixtures_dir() / "samples", tree / "samples", ignore=ignore)
    for fault in faults:
        path = fault.path(tree / "backend", tree)
        path.write_text(fault.in_text(path.read_text(encoding="utf-8")), encoding="utf-8")
    return tree / "backend"
