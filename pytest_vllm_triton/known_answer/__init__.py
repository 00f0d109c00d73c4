"""A real checkpoint whose every answer is known by construction, and the oracle that knows it."""

from __future__ import annotations

from ._adapter import BACKWARDS, LEAPS, AdapterSpec
from ._checkpoint import build_adapter, build_checkpoint, build_vision_checkpoint
from ._oracle import Answer, FinishReason, KnownAnswer
from ._spec import DEFAULT_STORY, OTHER_STORY, KnownAnswerSpec
from ._vision import COLOURS, IMAGE_TOKEN, IMAGE_TOKENS, vision_answer

__all__ = [
    "BACKWARDS",
    "COLOURS",
    "DEFAULT_STORY",
    "IMAGE_TOKEN",
    "IMAGE_TOKENS",
    "LEAPS",
    "OTHER_STORY",
    "AdapterSpec",
    "Answer",
    "FinishReason",
    "KnownAnswer",
    "KnownAnswerSpec",
    "build_adapter",
    "build_checkpoint",
    "build_vision_checkpoint",
    "vision_answer",
]
