"""What a stub can tell about the server that started it."""

from __future__ import annotations

import os
from pathlib import Path


def can_unload() -> bool:
    """Whether the server takes models out on request, which it does under
    `--model-control-mode=explicit` alone.

    Asked before `pb_utils.unload_model`, because that must not be refused: the stub reads the
    refusal's text from shared memory that the server may have freed by then, and crashes now and
    then (python_backend, `Stub::SendMessage`; seen in Triton 24.10 about every second time).

    True for a parent that is no tritonserver (Triton's in-process API): it cannot be told there.
    """
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return True
    return control_mode(words.split("\0")) in (None, "explicit")


def control_mode(command_line: list[str]) -> str | None:
    """The model control mode of a tritonserver's command line; None if it is another program's.

    The last option counts, as it does for Triton.
    """
    program, *arguments = command_line
    if Path(program).name != "tritonserver":
        return None
    mode = "none"
    option = "--model-control-mode"
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == option:
            mode = following
        elif argument.startswith(f"{option}="):
            mode = argument.removeprefix(f"{option}=")
    return mode
