"""Docker itself: reach it, get an image, and say in one sentence what is wrong with it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.launchers.docker_run import GpuRequest
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.texts import cut_start, first_line

#: For one answer of the daemon's, which may be busy with a pull or a removal.
ANSWER_SECONDS = 120
TELL_SECONDS = 5.0

_OTHERWISE = "or use --triton-launcher process"
_LIMITS = {"3": "stack", "8": "memlock"}
_REFUSED_LIMIT = re.compile(r"error setting rlimit type (\d+)")


def connect(timeout: int = ANSWER_SECONDS) -> Any:
    """The Docker SDK's client of the daemon that the docker command would use.

    Raises UserError where there is no Docker, or where it may not be used.
    """
    try:
        # Knows Docker's contexts, DOCKER_HOST and the registries' passwords. Its reaper container
        # only comes with testcontainers' own containers, which are not used here.
        from testcontainers.core.docker_client import DockerClient

        client = DockerClient(timeout=timeout).client
        client.ping()
    except Exception as error:  # the SDK lets errors of four libraries through
        raise UserError(no_connection(str(error))) from None
    return client


def no_connection(error: str) -> str:
    """Why Docker does not answer, and what to do, from the text of the SDK's exception."""
    if "PermissionError" in error or "Permission denied" in error:
        return (
            "You may not use Docker's socket: add yourself to its group (sudo usermod -aG docker "
            f"$USER, then log in again), {_OTHERWISE}."
        )
    if re.search(r"FileNotFoundError|No such file|ConnectionRefused|Connection refused", error):
        return (
            "Docker does not run here: install it and start it (sudo systemctl start docker), "
            f"name another daemon with DOCKER_HOST, {_OTHERWISE}."
        )
    return f"Docker does not answer: {_first_line(error)}. Check `docker version`, {_OTHERWISE}."


def has_image(client: Any, name: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def ensure_image(client: Any, name: str, progress: Progress) -> None:
    """Pull the image if it is not here; raises UserError where it cannot be had."""
    from docker.errors import APIError
    from docker.utils import parse_repository_tag
    from requests.exceptions import RequestException

    try:
        if has_image(client, name):
            return
        progress(f"pulling {name}")
        repository, tag = parse_repository_tag(name)
        pull = PullProgress(name, progress)
        for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise UserError(no_image(name, str(event["error"])))
            pull.note(event)
    except APIError as error:
        raise UserError(no_image(name, str(error.explanation or error))) from None
    except RequestException as error:  # the SDK passes on what its HTTP library raises
        raise UserError(no_image(name, str(error))) from None


def no_image(name: str, error: str) -> str:
    """Why the image cannot be had, and what to do."""
    why = _first_line(error)
    if re.search(r"unauthorized|denied|authentication", error, re.IGNORECASE):
        do = "log in to its registry (docker login), and check the name"
    elif re.search(r"not found|manifest unknown|no such image", error, re.IGNORECASE):
        do = "check the name and the tag"
    elif re.search(r"invalid reference", error, re.IGNORECASE):
        do = f"give a name such as {DEFAULT_IMAGE}"
    else:
        do = "check the network, or build one (make image builds the CPU image)"
    return f"The image {name} is not here and cannot be pulled ({why}): {do}."


class PullProgress:
    """Tells now and then how far a pull is."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self.progress = progress
        self.layers: dict[str, tuple[int, int]] = {}
        self.told_at = time.monotonic()

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in one event of Docker's."""
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and detail.get("total"):
            self.layers[str(event.get("id"))] = (int(detail["current"]), int(detail["total"]))
        elif event.get("status") in ("Download complete", "Pull complete"):
            layer = str(event.get("id"))
            total = self.layers.get(layer, (0, 0))[1]
            self.layers[layer] = (total, total)
        if time.monotonic() - self.told_at >= TELL_SECONDS:
            self.told_at = time.monotonic()
            self.progress(self._so_far())

    def _so_far(self) -> str:
        if not self.layers:  # the registry takes its time to tell what there is
            return f"pulling {self.name}"
        done, total = (sum(sizes) for sizes in zip(*self.layers.values(), strict=True))
        return f"pulling {self.name}: {done / 1e9:.1f} of {total / 1e9:.1f} GB so far"


def bridge_address(network: Mapping[str, Any]) -> str | None:
    """A container's own address, if it is on a bridge of this host; else None.

    Better than the published ports, whose proxy can keep a connection that its client has closed
    (seen with Docker 20.10), for which a Triton that is told to end then waits. Where Docker runs
    in a machine or a network namespace of its own, the bridge is not this host's.

    Args:
        network: ``NetworkSettings`` of ``docker inspect``.
    """
    own = {address.address for of in psutil.net_if_addrs().values() for address in of}
    for attached in network["Networks"].values():
        if attached.get("IPAddress") and attached.get("Gateway") in own:
            return str(attached["IPAddress"])
    return None


# --- GPUs ------------------------------------------------------------------------------------


def gpu_request(wanted: str | None, info: Mapping[str, Any], *, has_gpu: bool) -> GpuRequest:
    """The GPUs to ask Docker for.

    Args:
        wanted: ``all``, ``none``, or names divided by commas; None: all, if there are any.
        info: what the daemon says of itself.
        has_gpu: whether this host has GPUs.
    """
    if wanted is None:
        wanted = "all" if has_gpu else "none"
    names = () if wanted == "none" else tuple(wanted.split(","))
    return GpuRequest(names, cdi=bool(names) and _has_only_cdi(info))


def _has_only_cdi(info: Mapping[str, Any]) -> bool:
    if "nvidia" in (info.get("Runtimes") or {}):
        return False
    discovered = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    folders = [Path(folder) for folder in info.get("CDISpecDirs") or ()]
    described = [file for folder in folders if folder.is_dir() for file in folder.glob("*nvidia*")]
    return bool(described) or any(name.startswith("nvidia.com/gpu") for name in discovered)


# --- starting --------------------------------------------------------------------------------


def refused_limit(error: str) -> str | None:
    """The name of the resource limit that this host does not let us raise, if that is the error."""
    found = _REFUSED_LIMIT.search(error)
    return _LIMITS.get(found[1], found[1]) if found else None


def no_start(image: str, error: str) -> str:
    """Why a container could not be started, and what to do."""
    if re.search(r"could not select device driver|unknown or invalid runtime name", error):
        return (
            "Docker cannot give containers NVIDIA GPUs: install the NVIDIA Container Toolkit "
            "(then sudo nvidia-ctk runtime configure --runtime=docker, and restart Docker), or "
            "give --triton-gpus none."
        )
    if re.search(r"CDI device|nvidia\.com/gpu|nvidia-container-cli", error):
        return (
            f"Docker could not give the container its GPUs ({_cause(error)}): check --triton-gpus "
            "against nvidia-smi -L, and the NVIDIA Container Toolkit."
        )
    if "executable file not found" in error or "no such file or directory: unknown" in error:
        return no_tritonserver(image)
    if "bind source path does not exist" in error:
        return (
            f"Docker does not see a folder of this host ({_cause(error)}): the daemon must run on "
            "the host, and in the file system, that pytest runs in."
        )
    return f"Docker could not start a container of {image}: {_cause(error)}."


def no_tritonserver(image: str) -> str:
    return (
        f"The image {image} has no tritonserver on its PATH: give an image of Triton's, such as "
        f"{DEFAULT_IMAGE}, or the CPU image (make image)."
    )


def _cause(error: str) -> str:
    """The last part of Docker's chains of errors: what went wrong at the bottom."""
    return cut_start(_first_line(error).removesuffix(": unknown"), 300)


def _first_line(text: str) -> str:
    return first_line(text, "no reason given").rstrip(". ")
