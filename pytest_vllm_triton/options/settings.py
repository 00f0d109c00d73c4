"""What the user asked for, as the options together mean it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_triton.known_failures import KnownFailure
from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.options.values import BackendSource
from pytest_vllm_triton.requirements import Level, Requirement


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The value of every option, validated, and what they are together.

    A default here is for an option that has none of its own (`Option.default`).

    Attributes:
        model_is_explicit: the model was given, be it the default one.
        launcher: the one that the options select; ``auto``: none is.
        launcher_by: the option that selects it, by its name in the ini file; "" for none.
        embedded: an option asks for the server that this package makes.
        backend_dir: None for the backend in this package.
        selects_suite: an option on the command line asks for the suite.
        is_default: no option was given.
    """

    model: str
    model_is_explicit: bool
    model_json: Mapping[str, Any] = field(default_factory=dict)
    vllm_version: str | None = None
    accelerator: str
    launcher: LauncherKind
    launcher_by: str
    embedded: bool
    image: str | None = None
    gpus: str | None = None
    xdist_gpus: str
    ipc: str
    shm_size: str
    server_bin: Path | None = None
    backend_dir: Path | BackendSource | None = None
    url: str | None = None
    grpc_url: str | None = None
    metrics_url: str | None = None
    model_name: str
    boot_timeout: float
    level: Level
    select: tuple[str, ...] = ()
    examples: int
    reports: tuple[Path, ...] = ()
    required: tuple[str, ...] = ()
    known_failures: Mapping[str, KnownFailure] = field(default_factory=dict)
    selects_suite: bool
    is_default: bool

    def asks_for(self, requirement: Requirement) -> bool:
        """Whether level and selection leave the requirement in."""
        names = (requirement.id, requirement.group)
        selected = not self.select or any(name in self.select for name in names)
        return selected and self.level.includes(requirement.level)
