"""Starts a server again where the load of its model failed by chance."""

from __future__ import annotations

from pytest_vllm_triton.launchers.base import Launcher, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.readiness import LoadStumbled
from pytest_vllm_triton.launchers.stalled_stub import ATTEMPTS
from pytest_vllm_triton.progress import Progress, silent


def launch(
    launcher: Launcher, spec: ServerSpec, *, timeout: float, progress: Progress = silent
) -> ServerHandle:
    """A server that is ready.

    Args:
        timeout: seconds until it is, of each attempt.

    Raises:
        ServerFailed, UserError: see `Launcher.launch`; `LoadStumbled` when the last attempt did.
    """
    for _ in range(1, ATTEMPTS):
        try:
            return launcher.launch(spec, timeout=timeout, progress=progress)
        except LoadStumbled:
            progress("The load of a model failed by chance, not by its backend. Starting again")
    return launcher.launch(spec, timeout=timeout, progress=progress)
