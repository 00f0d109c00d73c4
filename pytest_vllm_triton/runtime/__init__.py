"""The embedded server runtime: a real Triton, and a real vLLM for CPUs, in their own environment.

find_runtime("0.32.0") or create_runtime("0.32.0", progress=print)
"""

from __future__ import annotations

from pytest_vllm_triton.runtime.create import create_runtime
from pytest_vllm_triton.runtime.recipe import DEFAULT_VLLM_VERSION, VLLM_VERSIONS
from pytest_vllm_triton.runtime.store import (
    Runtime,
    find_runtime,
    home,
    list_runtimes,
    remove_runtime,
)

__all__ = [
    "DEFAULT_VLLM_VERSION",
    "VLLM_VERSIONS",
    "Runtime",
    "create_runtime",
    "find_runtime",
    "home",
    "list_runtimes",
    "remove_runtime",
]
