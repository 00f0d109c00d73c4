"""Which embedded runtime ``--triton-accelerator`` means on this host."""

from __future__ import annotations

from collections.abc import Callable

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import host_has_gpu
from pytest_vllm_triton.runtime.recipe import (
    ACCELERATORS,
    CPU,
    CUDA,
    Accelerator,
    check_vllm_version,
)
from pytest_vllm_triton.runtime.store import Runtime, find_runtime

#: The value that leaves it to this module.
AUTO = "auto"


def choose_accelerator(
    wanted: str,
    vllm_version: str | None,
    *,
    has_gpu: Callable[[], bool] = host_has_gpu,
    find: Callable[[str, Accelerator], Runtime | None] = find_runtime,
) -> Accelerator:
    """What the runtime computes on.

    ``auto`` is CUDA where this host has an NVIDIA GPU and a finished runtime for it, and else the
    CPU: many gigabytes are for the user to ask for.

    Args:
        wanted: ``auto``, or the name of an accelerator.
        vllm_version: the one that the runtime has to have; None: the accelerator's default.
        has_gpu: whether this host has a GPU.
        find: the finished runtime of a version and an accelerator.

    Raises:
        UserError: it has no such vLLM.
    """
    if wanted != AUTO:
        chosen = ACCELERATORS[wanted]
    else:
        version = vllm_version or CUDA.default_version
        there = version in CUDA.versions and has_gpu() and find(version, CUDA)
        chosen = CUDA if there else CPU
    if vllm_version is not None:
        check_vllm_version(vllm_version, chosen)
    return chosen


def check_gpu(accelerator: Accelerator, has_gpu: Callable[[], bool] = host_has_gpu) -> None:
    """See that servers can run with it here, before gigabytes are downloaded for nothing.

    Raises:
        UserError: it needs a GPU, and this host has none.
    """
    if accelerator.needs_gpu and not has_gpu():
        raise UserError(
            f"The embedded runtime on {accelerator.device} needs an NVIDIA GPU, and this host has "
            "none. Leave --triton-accelerator out, or attach to a server on another host."
        )
