"""Requests between Triton and the engine: what happens to one that ends out of turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_triton_backend.event_loop import EventLoop
from vllm_triton_backend.live_requests import LiveRequests
from vllm_triton_backend.requests import GenerateRequest, Wanted
from vllm_triton_backend.runner import RequestRunner

REQUEST = GenerateRequest("", "p", True, False, Wanted(), {})


class FakeEngine:
    """Takes every request, and notes which it is told to abort."""

    alive = True

    def __init__(self) -> None:
        self.added, self.aborted = threading.Semaphore(0), threading.Semaphore(0)

    async def prepare(self, prompt: Any) -> Any:
        return prompt

    async def generate(self, *_: Any, **__: Any) -> Any:
        self.added.release()
        return SimpleNamespace()

    async def abort(self, _: Any) -> None:
        self.aborted.release()


class FakeStream:
    """One whose client has gone; asking for that may fail."""

    def __init__(self, *, broken: bool = False, cancelled: bool = False) -> None:
        self.broken, self.cancelled = broken, cancelled

    def resume(self) -> None: ...

    def is_cancelled(self) -> bool:
        if self.broken:
            raise RuntimeError("the sender is gone")
        return self.cancelled

    def fail(self, _: Any) -> None: ...


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def runner(engine: FakeEngine) -> Iterator[RequestRunner]:
    loop = EventLoop("test")
    runner = RequestRunner(
        None,  # type: ignore[arg-type]
        engine,  # type: ignore[arg-type]
        loop,
        LiveRequests(0),
        loras=None,
        health_check=False,
        on_unhealthy=lambda: None,
        on_given_up=lambda: None,
        log=lambda _: None,
    )
    yield runner
    runner._watch.stop(5)
    loop.stop(5)


def test_request_whose_response_cannot_be_sent_leaves_the_engine(
    runner: RequestRunner, engine: FakeEngine
) -> None:
    stream: Any = FakeStream()
    runner.submit(REQUEST, None, None, stream)
    assert engine.added.acquire(timeout=30)
    # Its stream has ended with an error of its own; the engine still works on it.
    runner.forget(stream)
    assert engine.aborted.acquire(timeout=30)


def test_one_failed_look_does_not_end_the_watch(runner: RequestRunner, engine: FakeEngine) -> None:
    broken: Any = FakeStream(broken=True)
    cancelled: Any = FakeStream()
    for stream in (broken, cancelled):
        runner.submit(REQUEST, None, None, stream)
        assert engine.added.acquire(timeout=30)
    cancelled.cancelled = True
    assert engine.aborted.acquire(timeout=30)
