"""The ways to get a server, and their defaults that several modules name."""

from __future__ import annotations

from enum import Enum

#: The image of --triton-launcher container where none is given.
DEFAULT_IMAGE = "nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3"
#: A container's /dev/shm: as large as in NVIDIA's docker run line.
DEFAULT_SHM_SIZE = "1G"


class LauncherKind(Enum):
    """The values of --triton-launcher."""

    AUTO = "auto"
    CONTAINER = "container"
    PROCESS = "process"
    ATTACH = "attach"
