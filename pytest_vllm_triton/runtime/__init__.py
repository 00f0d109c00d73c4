"""The embedded server runtime: a real Triton, and a real vLLM, in their own environment.

find_runtime("0.32.0") or create_runtime("0.32.0", progress=print)
find_runtime("0.25.1", CUDA) or create_runtime("0.25.1", progress=print, accelerator=CUDA)
"""

from __future__ import annotations

from pytest_vllm_triton.runtime.create import create_runtime, install_runtime
from pytest_vllm_triton.runtime.recipe import ACCELERATORS, CPU, CUDA, Accelerator
from pytest_vllm_triton.runtime.store import (
    Runtime,
    find_runtime,
    list_runtimes,
    remove_runtime,
)

__all__ = [
    "ACCELERATORS",
    "CPU",
    "CUDA",
    "Accelerator",
    "Runtime",
    "create_runtime",
    "find_runtime",
    "install_runtime",
    "list_runtimes",
    "remove_runtime",
]
