"""The catalogue of requirements: ids, levels and sentences, read from ``requirements.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from pytest_vllm_triton.toml_files import read_toml

CATALOGUE_FILE = Path(__file__).with_name("requirements.toml")


class Level(Enum):
    """How binding a requirement is, in the words of RFC 2119.

    The members' order has a meaning: the most binding first. `includes` and the reports go by it.
    """

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"

    def includes(self, other: Level) -> bool:
        """Whether a run at this level checks requirements of the other level."""
        order = list(Level)
        return order.index(other) <= order.index(self)


@dataclass(frozen=True)
class Requirement:
    """One requirement of the catalogue.

    Attributes:
        id: e.g. ``"GEN-001"``; the part before the dash is its group.
        level: how binding it is.
        sentence: input -> observable result.
        source: where it comes from.
        needs: the host for its check: ``"cpu"`` (any), ``"1 gpu"``, ``"2 gpus"``, ``"4 gpus"``,
            ``"docker"``.
        upstream: what NVIDIA's backend is known to do instead, ``""`` if nothing is known.
        unchecked: why the suite has no check of it, ``""`` if it has one.
    """

    id: str
    level: Level
    sentence: str
    source: str
    needs: str = "cpu"
    upstream: str = ""
    unchecked: str = ""

    @property
    def group(self) -> str:
        return self.id.partition("-")[0]

    @property
    def gpus(self) -> int:
        """How many GPUs its check takes."""
        number, _, unit = self.needs.partition(" ")
        return int(number) if unit in ("gpu", "gpus") else 0


class Catalogue(Mapping[str, Requirement]):
    """All requirements by id, in the order of the data file."""

    def __init__(self, requirements: Mapping[str, Requirement], groups: Mapping[str, str]) -> None:
        self._requirements = dict(requirements)
        self.groups = dict(groups)

    def __getitem__(self, key: str) -> Requirement:
        return self._requirements[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._requirements)

    def __len__(self) -> int:
        return len(self._requirements)

    @cached_property
    def by_group(self) -> dict[str, list[Requirement]]:
        """Requirements of each group, groups in the data file's order."""
        result: dict[str, list[Requirement]] = {group: [] for group in self.groups}
        for requirement in self.values():
            result[requirement.group].append(requirement)
        return result


def load_catalogue(path: Path = CATALOGUE_FILE) -> Catalogue:
    """Read the data file.

    Raises:
        ValueError: an entry lacks a field, has an unknown one, or names an unknown group or level.
    """
    data = read_toml(path)
    groups = data.pop("groups")
    requirements = {}
    for key, entry in data.items():
        try:
            requirement = Requirement(id=key, **{**entry, "level": Level(entry["level"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path.name}: {key}: {error}") from None
        if requirement.group not in groups:
            raise ValueError(f"{path.name}: {key}: group {requirement.group!r} is not declared")
        requirements[key] = requirement
    return Catalogue(requirements, groups)
