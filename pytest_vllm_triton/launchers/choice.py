"""Which launcher ``auto`` means on this host, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import host_has_gpu
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE, LauncherKind
from pytest_vllm_triton.options.settings import Settings


@dataclass(frozen=True)
class Choice:
    """A launcher.

    Attributes:
        why: for the header.
    """

    kind: LauncherKind
    why: str


def choose(
    settings: Settings,
    *,
    has_gpu: Callable[[], bool] = host_has_gpu,
    find_image: Callable[[str], bool] | None = None,
) -> Choice:
    """The launcher that the settings ask for; never ``auto``.

    ``auto`` is a container where this host has a GPU, Docker and NVIDIA's image, and else a
    process. It pulls nothing: an image of many gigabytes is for the user to ask for.

    Args:
        has_gpu: whether this host has a GPU.
        find_image: whether an image is here; raises UserError where there is no Docker.
    """
    if settings.launcher is not LauncherKind.AUTO:
        return Choice(settings.launcher, _why_asked(settings))
    if not has_gpu():
        return Choice(LauncherKind.PROCESS, "auto: no GPU on this host")
    try:
        found = (find_image or _find_image)(DEFAULT_IMAGE)
    except UserError:
        return Choice(LauncherKind.PROCESS, "auto: a GPU, but no Docker")
    if not found:
        return Choice(LauncherKind.PROCESS, f"auto: a GPU, but not the image {DEFAULT_IMAGE}")
    return Choice(LauncherKind.CONTAINER, "auto: a GPU, Docker and NVIDIA's image")


def _why_asked(settings: Settings) -> str:
    if settings.launcher is LauncherKind.CONTAINER and settings.image is not None:
        return "--triton-image"
    # A tritonserver is no launcher: it only is why there is a process.
    if settings.launcher_by == "triton_server_bin":
        return "auto: --triton-server-bin"
    return "asked for"


def _find_image(name: str) -> bool:
    from pytest_vllm_triton.launchers.docker_engine import connect, has_image

    client = connect(timeout=5)
    try:
        return has_image(client, name)
    finally:
        client.close()
