"""The table of faults: what each one changes, and which requirements it violates."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_vllm_triton import assets, requirements
from pytest_vllm_triton.toml_files import read_toml

TABLE = Path(__file__).with_name("faults.toml")
HARMLESS = Path(__file__).with_name("harmless.toml")
EXEMPT = Path(__file__).with_name("exempt.toml")
# These read an experiment of minutes; a fault whose group they are in has to name them.
LONG = frozenset({"CON-003", "ERR-019", "ERR-022", "MET-001", "MET-013", "STR-012"})
_SAMPLES = "samples/"


class StaleFault(Exception):
    """The line that a fault changes is not there any more: the fault has to be renewed."""


@dataclass(frozen=True)
class Fault:
    """One mistake. The fields are described at the top of ``faults.toml``."""

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

    @property
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

    def apply(self, tree: Path) -> None:
        """Put the mistake into a copy of the sources made by `copy_sources`.

        Raises:
            StaleFault: the text to replace is not there exactly once.
        """
        path = tree / self.file if self.file.startswith(_SAMPLES) else tree / "backend" / self.file
        source = path.read_text(encoding="utf-8")
        found = source.count(self.old)
        if found != 1:
            raise StaleFault(f"{self.name}: {self.file} holds its line {found} times, not once")
        changed = source.replace(self.old, self.new) + self.more
        compile(changed, str(path), "exec")
        path.write_text(changed, encoding="utf-8")


@cache
def load_catalogue() -> requirements.Catalogue:
    """The catalogue of requirements, read once."""
    return requirements.load_catalogue()


def load_faults(path: Path = TABLE) -> dict[str, Fault]:
    """All faults by name, in the order of the file.

    Raises:
        TypeError: an entry lacks a field or has an unknown one.
    """
    entries = read_toml(path)
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
        fault.apply(tree)
    return tree / "backend"
