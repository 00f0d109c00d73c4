"""What a stub can tell about the server that started it, from that server's command line.

Asked before calls that the server would refuse, because refusals are not safe: the stub reads the
text of one from shared memory that the server may have freed by then, and crashes now and then
(python_backend, `Stub::SendMessage`; seen in Triton 24.10 about every second time).

Where the parent is no tritonserver (Triton's in-process API), nothing is known and all is tried.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path


def socket_name(purpose: str, model_name: str, model_version: str) -> str:
    """Where processes of one model of this server meet: the name of an abstract socket.

    The name of the process namespace is part of it, since containers that share the host's network
    share abstract sockets too.
    """
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    text = f"{namespace}/{os.getppid()}/{model_name}/{model_version}"
    return f"\0triton-vllm-{purpose}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def can_unload() -> bool:
    """Whether the server takes models out on request: `pb_utils.unload_model`."""
    arguments = _arguments_of_parent()
    return arguments is None or value_of("--model-control-mode", arguments) == "explicit"


def has_metrics() -> bool:
    """Whether the server exports metrics, and so lets models make some: `pb_utils.MetricFamily`."""
    arguments = _arguments_of_parent()
    return arguments is None or value_of("--allow-metrics", arguments) not in ("false", "0")


def value_of(option: str, arguments: list[str]) -> str | None:
    """The value of the last `option VALUE` or `option=VALUE`, in lower case; None without one."""
    value = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == option:
            value = following.lower()
        elif argument.startswith(f"{option}="):
            value = argument.removeprefix(f"{option}=").lower()
    return value


def _arguments_of_parent() -> list[str] | None:
    try:
        line = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    program, *arguments = line.split("\0")
    return arguments if Path(program).name == "tritonserver" else None
