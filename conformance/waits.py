"""Waiting for what must happen, and for how many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_vllm_triton.models.under_test import ModelUnderTest

UNLOAD_SECONDS = 30.0
# Until a model is seen to be taken out: by an answer that the engine is unhealthy, or by an unload
# without a stub.
TAKEN_OUT_SECONDS = 2.0
# An experiment that gives up early tells nothing, so its clients wait longer than those of a check.
PATIENCE = 180.0
# Time for processes that were told to end, on a busy machine.
GONE_SECONDS = 20.0
# Time for a backend or a server to notice what happened.
NOTICED_SECONDS = 10.0
# Until an answer comes, if only an error, of an engine that is dead or is asked for nonsense.
ANSWER_SECONDS = 10.0
# Until the last of a crowd's thousands of tokens, of a model that is no tiny one, on a slow CPU.
CROWD_SECONDS = 600.0


def crowd_deadline(model: ModelUnderTest) -> float | None:
    """The deadline of a crowd's stream: of a tiny model that of every other one (None), so that it
    is soon known of a backend that some are never answered."""
    return None if model.known_answer is not None else CROWD_SECONDS


def until(is_so: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until it is so; None if it is not before the deadline."""
    started = time.monotonic()
    while True:
        so = is_so()
        took = time.monotonic() - started
        if so:
            return took
        if took > seconds:
            return None
        time.sleep(0.05)
