"""Which launcher the options select, and which of them have no effect on it.

An option that would be ignored is an error of its user, unless it is a mere default: given farther
away (command line, environment, ini file) than the option that selects the launcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.options.launcher_kinds import LauncherKind

_CONTAINER = LauncherKind.CONTAINER
_PROCESS = LauncherKind.PROCESS
_ATTACH = LauncherKind.ATTACH

#: Option -> the launchers that it applies to. Those that are not listed apply to all.
APPLIES: Mapping[str, tuple[LauncherKind, ...]] = {
    "triton_url": (_ATTACH,),
    "triton_grpc_url": (_ATTACH,),
    "triton_metrics_url": (_ATTACH,),
    "triton_image": (_CONTAINER,),
    "triton_gpus": (_CONTAINER,),
    "triton_ipc": (_CONTAINER,),
    "triton_shm_size": (_CONTAINER,),
    "triton_server_bin": (_PROCESS,),
    "vllm_version": (_PROCESS,),
    "triton_accelerator": (_PROCESS,),
    "triton_backend_dir": (_CONTAINER, _PROCESS),
    "triton_xdist_gpus": (_CONTAINER, _PROCESS),
}
#: Of the process launcher's, those of the server that this package makes.
_EMBEDDED = ("vllm_version", "triton_accelerator")
#: Options that select a launcher by being given, of equally close ones the first.
_SELECTING: Mapping[str, LauncherKind] = {
    "triton_url": _ATTACH,
    "triton_image": _CONTAINER,
    "triton_server_bin": _PROCESS,
}
#: The same where none of those is given; but in the ini file they are mere defaults.
_SELECTING_WHERE_NONE_DOES: Mapping[str, LauncherKind] = {
    "vllm_version": _PROCESS,
    "triton_accelerator": _PROCESS,
    "triton_gpus": _CONTAINER,
    "triton_ipc": _CONTAINER,
    "triton_shm_size": _CONTAINER,
}


class Distance(IntEnum):
    """How far away from pytest's command line the value of an option was given."""

    COMMAND_LINE = 0
    ENVIRONMENT = 1
    INI_FILE = 2


@dataclass(frozen=True)
class Origin:
    """Where the value of an option came from.

    Attributes:
        name: as its user knows it.
    """

    name: str
    distance: Distance


@dataclass(frozen=True)
class Selection:
    """What the options together mean.

    Attributes:
        launcher: the launcher that is selected; ``auto``: none is.
        by: the option that selects it; "" for none.
        ignored: options that do not apply to it, and were only defaults.
        embedded: an option asks for the server that this package makes.
    """

    launcher: LauncherKind
    by: str = ""
    ignored: frozenset[str] = frozenset()
    embedded: bool = False


def select_launcher(given: Mapping[str, Origin], launcher: LauncherKind) -> Selection:
    """The launcher that the closest option selects.

    Args:
        given: the options that were given, and say something else than their defaults.
        launcher: the value of --triton-launcher.

    Raises:
        UserError: an option has no effect on it, or contradicts it; names both.
    """
    by_name = {} if launcher is LauncherKind.AUTO else {"triton_launcher": launcher}
    selecting = {**by_name, **_SELECTING, **_SELECTING_WHERE_NONE_DOES}
    candidates = [name for name in (*by_name, *_SELECTING) if name in given] or [
        name
        for name in _SELECTING_WHERE_NONE_DOES
        if name in given and given[name].distance < Distance.INI_FILE
    ]
    embedded = given.keys() & set(_EMBEDDED)
    if not candidates:
        return Selection(LauncherKind.AUTO, embedded=bool(embedded))
    by = min(candidates, key=lambda name: given[name].distance)
    kind = selecting[by]
    ignored = set()
    for name, kinds in APPLIES.items():
        if name in given and kind not in kinds:
            meant_for = " or ".join(each.value for each in kinds)
            _refuse(given[name], f"launcher {meant_for}", given[by], f"selects {kind.value}")
            ignored.add(name)
    if "triton_server_bin" in given and "triton_server_bin" not in ignored:
        server = given["triton_server_bin"]
        for name in embedded:
            _refuse(given[name], "the embedded runtime", server, "names another server")
            ignored.add(name)
    return Selection(kind, by, frozenset(ignored), embedded=bool(embedded - ignored))


def _refuse(option: Origin, meant_for: str, other: Origin, what: str) -> None:
    """Say that the option has no effect beside the other, unless it is a mere default."""
    if option.distance <= other.distance:
        raise UserError(
            f"{option.name} is for {meant_for}, and {other.name} {what}: leave one of the two out"
        )
