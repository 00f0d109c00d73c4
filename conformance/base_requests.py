"""What the checks of generation ask for, with changes of their own."""

from __future__ import annotations

from typing import Any

from pytest_vllm_triton.clients import Generate, GenerateRequest
from pytest_vllm_triton.verdicts import untested

PROMPT = "What is Triton Inference Server?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ONE = GenerateRequest(PROMPT, sampling=GREEDY, exclude_input_in_output=True)
# The highest temperature that vLLM takes: two random texts of any model differ, even of the
# known-answer model, which is sure of its story.
HOT: dict[str, Any] = {"temperature": 2.0, "ignore_eos": True}


def nonempty_text(generate: Generate, request: GenerateRequest) -> str:
    """What the model says, to take a stop string from; the check is untested if that is nothing."""
    text = generate(request).ok().text
    if not text:
        untested("the model has nothing to say after this prompt")
    return text
