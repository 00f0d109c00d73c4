"""What pip resolves for vLLM, and what of it is installed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.recipe import Accelerator

#: What belongs to a PyTorch, of all that it needs: libraries and compilers that its build fixes.
TORCHS_OWN = re.compile(r"(torch|torchvision|torchaudio|triton|pytorch-triton|(nvidia|cuda)-.+)")


@dataclass(frozen=True)
class Resolution:
    """The distributions that vLLM needs, as pip resolved them.

    Attributes:
        metadata: of each distribution, by its normalized name, as pip's report has it.
    """

    accelerator: Accelerator
    metadata: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, accelerator: Accelerator, installs: Sequence[Mapping[str, Any]]) -> Resolution:
        """Of the part "install" of pip's report."""
        found = [install["metadata"] for install in installs]
        return cls(accelerator, {canonicalize_name(entry["name"]): entry for entry in found})

    def pins(self, without: Collection[str] = ()) -> list[str]:
        """Exactly what is to be installed, Triton included, one requirement each.

        Args:
            without: normalized names that are not.
        """
        wanted = self._needed_by(self.accelerator.distribution, self.accelerator.left_out)
        versions = {name: self.metadata[name]["version"] for name in wanted - set(without)}
        versions["numpy"] = recipe.NUMPY_VERSION
        lines = sorted(f"{name}=={version}" for name, version in versions.items())
        return [*lines, recipe.TRITON_PIN]

    def torch_and_its_own(self) -> set[str]:
        """PyTorch, and what of its needs comes with it where a host has it."""
        needed = self._needed_by("torch") | {"torchvision", "torchaudio"}
        return {name for name in needed if TORCHS_OWN.fullmatch(name)}

    def torch_specifier(self) -> str:
        """The versions of PyTorch that this vLLM takes, such as "==2.11.0"."""
        for requirement in self._requirements(self.accelerator.distribution):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if canonicalize_name(requirement.name) == "torch" and applies:
                return str(requirement.specifier)
        return ""

    def _needed_by(self, root: str, without: Collection[str] = ()) -> set[str]:
        """It and all that it needs, directly or not, except through those left out.

        Markers and extras are not looked at: at worst something stays that nobody needs.
        """
        found: set[str] = set()
        ahead = [str(canonicalize_name(root))]
        while ahead:
            name = ahead.pop()
            if name in found or name in without or name not in self.metadata:
                continue
            found.add(name)
            ahead += [str(canonicalize_name(each.name)) for each in self._requirements(name)]
        return found

    def _requirements(self, name: str) -> list[Requirement]:
        return [Requirement(text) for text in self.metadata[name].get("requires_dist") or ()]
