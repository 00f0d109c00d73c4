"""Triton's entry point of the vLLM backend.

Thin on purpose: Triton imports this file twice per model (once to auto-complete the
configuration), so vLLM and torch are imported by `initialize` and by nothing at the top.
"""

from __future__ import annotations

from typing import Any

from vllm_triton_backend.tensors import auto_complete


class TritonPythonModel:
    """See python_backend's README for when Triton calls what."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete config.pbtxt; see `tensors.auto_complete`."""
        return auto_complete(auto_complete_model_config)

    def initialize(self, args: dict[str, str]) -> None:
        """Boot the engine. Raises with a readable sentence when the model cannot be loaded."""
        from vllm_triton_backend.service import Service

        self._service = Service.load(args)

    def execute(self, requests: list[Any]) -> None:
        """Hand the requests to the engine, on which it never blocks."""
        for request in requests:
            self._service.accept(request)

    def is_ready(self) -> bool:
        """Whether the engine is alive (asked by Triton 26.03 and newer)."""
        return self._service.is_ready()

    def finalize(self) -> None:
        """Drain, then stop the engine."""
        self._service.close()
        del self._service
