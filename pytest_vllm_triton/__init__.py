"""Conformance suite and pytest plugin for vLLM backends of NVIDIA Triton."""

__version__ = "0.1.0"
