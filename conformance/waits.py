"""Waiting for what must happen, and for how many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_vllm_triton.models.under_test import ModelUnderTest

UNLOAD_SECONDS = 30.0
# Until a model is seen to be taken out of service, after an answer that its engine is unhealthy or
# after an unload that found no stub.
TAKEN_OUT_SECONDS = 2.0
# An experiment that gives up early tells nothing, so its clients wait longer than those of a check.
PATIENCE = 180.0
# Time for processes that were told to end, on a busy machine.
GONE_SECONDS = 20.0
# Time for a backend or a server to notice what happened.
NOTICED_SECONDS = 10.0
# Until an engine that is dead, or is asked for nonsense, has given an answer, if only an error.
ANSWER_SECONDS = 10.0
# Until a crowd of requests has its last token: thousands of them, on a slow CPU, from a model that
# is not one of the suite's tiny ones.
CROWD_SECONDS = 600.0


def crowd_deadline(model: ModelUnderTest) -> float | None:
    """The deadline of a stream with a crowd of requests. With a tiny model it is the usual one
    (None), so that a backend which never answers some of them is soon found out."""
    return None if model.known_answer is not None else CROWD_SECONDS


def until(is_so: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until it was seen to be so; None if no look that began in time saw it."""
    started = time.monotonic()
    while True:
        so = is_so()
        took = time.monotonic() - started
        if so:
            return took
        if took > seconds:
            return None
        time.sleep(0.05)
