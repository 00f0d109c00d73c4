"""Where the packages of a runtime come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.pip import Pip
from pytest_vllm_triton.runtime.recipe import Accelerator
from pytest_vllm_triton.runtime.resolution import Resolution

#: The file in an environment's root that a source leaves: what to install.
PINS = "pins.json"

#: The title of a step, and what does it.
Step = tuple[str, Callable[[Environment, Progress], None]]


class Source(Protocol):
    """Gives the packages of one runtime.

    Attributes:
        accelerator: the runtime's.
        vllm_version: the runtime's.
        disk_gib: room that the creation takes.
    """

    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def vllm_version(self) -> str: ...
    @property
    def disk_gib(self) -> float: ...

    def steps(self) -> Sequence[Step]:
        """What to do until `PINS` is there and `pip` can install it."""

    def pip(self, environment: Environment) -> Pip:
        """A pip that installs from this source."""


@dataclass(frozen=True)
class Index:
    """Package indexes, as the user's pip is configured."""

    accelerator: Accelerator
    vllm_version: str

    @property
    def disk_gib(self) -> float:
        return self.accelerator.disk_gib

    def steps(self) -> Sequence[Step]:
        return (
            ("looking for the packages", self.reach),
            ("resolving vLLM's dependencies", self.pin),
        )

    def pip(self, environment: Environment) -> Pip:
        return Pip(environment.python, environment.root)

    def reach(self, environment: Environment, progress: Progress) -> None:
        """Fail soon where the packages are out of reach."""
        self.pip(environment).reach([self._vllm_pin, recipe.TRITON_PIN], progress)

    def resolve(self, environment: Environment, progress: Progress) -> Resolution:
        """What vLLM needs."""
        return Resolution.of(
            self.accelerator, self.pip(environment).resolve([self._vllm_pin], progress)
        )

    def pin(self, environment: Environment, progress: Progress) -> None:
        """Write down what to install."""
        pins = self.resolve(environment, progress).pins()
        (environment.root / PINS).write_text(json.dumps(pins))

    @property
    def _vllm_pin(self) -> str:
        return self.accelerator.vllm_pin(self.vllm_version)
