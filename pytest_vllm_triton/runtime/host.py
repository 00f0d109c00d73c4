"""Whether this host can carry a runtime at all."""

from __future__ import annotations

import platform
import sys

from pytest_vllm_triton.errors import RuntimeUnavailable

#: The oldest C library that the binaries of the Triton wheel run on.
GLIBC = (2, 35)


def check_platform(glibc: tuple[int, int] = GLIBC) -> None:
    """See that this is a Linux with this C library or a newer one.

    Raises:
        RuntimeUnavailable: it is not.
    """
    machine, system = platform.machine(), sys.platform
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if system != "linux" or machine != "x86_64" or name != "glibc" or numbers < glibc:
        raise RuntimeUnavailable(
            f"The embedded server runtime needs Linux on x86_64 with glibc {glibc[0]}.{glibc[1]} "
            f"or newer, as its binaries do; this host has {system} on {machine} with "
            f"{name or 'an unknown C library'} {version}. Use --triton-launcher=container, or "
            "attach to a running server."
        )
