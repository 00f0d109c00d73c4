"""Requests between Triton and the engine: what happens to one that ends out of turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.event_loop import EventLoop
from vllm_triton_backend.live_requests import LiveRequests
from vllm_triton_backend.requests import GenerateRequest, Wanted
from vllm_triton_backend.runner import RequestRunner
from waiting import eventually

CANCELLING = "[vllm] Cancelling the request"
CANCELLED = "[vllm] Successfully cancelled the request"
REQUEST = GenerateRequest("", "p", True, False, Wanted(), {})


class FakeEngine:
    """Takes every request, and notes which it is told to abort."""

    alive = True

    def __init__(self) -> None:
        self.added, self.aborted = threading.Semaphore(0), threading.Semaphore(0)
        #: Each takes until its event is set, and then an abort may fail.
        self.prepares, self.lets_go = threading.Event(), threading.Event()
        self.prepares.set()
        self.lets_go.set()
        self.failure: Exception | None = None

    async def prepare(self, prompt: Any) -> Any:
        await asyncio.to_thread(self.prepares.wait, 30)
        return prompt

    async def generate(self, *_: Any, **__: Any) -> Any:
        self.added.release()
        return SimpleNamespace()

    async def abort(self, _: Any) -> None:
        self.aborted.release()
        await asyncio.to_thread(self.lets_go.wait, 30)
        if self.failure is not None:
            raise self.failure


class FakeStream:
    """One whose client has gone; asking for that may fail."""

    def __init__(self, *, broken: bool = False, cancelled: bool = False) -> None:
        self.broken, self.cancelled = broken, cancelled
        self.failed: RequestError | None = None

    def resume(self) -> None: ...

    def is_cancelled(self) -> bool:
        if self.broken:
            raise RuntimeError("the sender is gone")
        return self.cancelled

    def fail(self, error: RequestError) -> None:
        self.failed = error


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def runner(engine: FakeEngine, log: list[str]) -> Iterator[RequestRunner]:
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
        log=log.append,
    )
    yield runner
    runner._watch.stop(5)
    loop.stop(5)


def test_request_whose_response_cannot_be_sent_leaves_the_engine(
    runner: RequestRunner, engine: FakeEngine, log: list[str]
) -> None:
    stream: Any = FakeStream()
    runner.submit(REQUEST, None, None, stream)
    assert engine.added.acquire(timeout=30)
    # Its stream has ended with an error of its own; the engine still works on it.
    runner.forget(stream)
    assert engine.aborted.acquire(timeout=30)
    assert not eventually(lambda: log, 0.2), "no client has cancelled it"


def test_one_failed_look_does_not_end_the_watch(runner: RequestRunner, engine: FakeEngine) -> None:
    broken: Any = FakeStream(broken=True)
    cancelled: Any = FakeStream()
    for stream in (broken, cancelled):
        runner.submit(REQUEST, None, None, stream)
        assert engine.added.acquire(timeout=30)
    cancelled.cancelled = True
    assert engine.aborted.acquire(timeout=30)


def cancelled(runner: RequestRunner, engine: FakeEngine) -> None:
    """Submit a request, cancel it, and return when the engine is told."""
    stream: Any = FakeStream()
    runner.submit(REQUEST, None, None, stream)
    assert engine.added.acquire(timeout=30)
    stream.cancelled = True
    assert engine.aborted.acquire(timeout=30)


def test_a_cancellation_is_logged_when_the_engine_has_let_go(
    runner: RequestRunner, engine: FakeEngine, log: list[str]
) -> None:
    engine.lets_go.clear()
    cancelled(runner, engine)
    assert log == [CANCELLING]
    engine.lets_go.set()
    assert eventually(lambda: log == [CANCELLING, CANCELLED]), log


def test_a_cancellation_that_fails_is_no_success(
    runner: RequestRunner, engine: FakeEngine, log: list[str]
) -> None:
    engine.failure = RuntimeError("no")
    cancelled(runner, engine)
    assert eventually(lambda: log == [CANCELLING, "[vllm] Aborting a request failed: no"]), log


def test_a_request_is_cancelled_before_the_engine_has_it(
    runner: RequestRunner, engine: FakeEngine, log: list[str]
) -> None:
    engine.prepares.clear()
    stream: Any = FakeStream(cancelled=True)
    runner.submit(REQUEST, None, None, stream)
    assert eventually(lambda: stream.failed)
    assert log == [CANCELLING]
    engine.prepares.set()
    assert eventually(lambda: log == [CANCELLING, CANCELLED]), log
    assert not engine.added.acquire(timeout=0.2)


@contextmanager
def unloading(runner: RequestRunner, engine: FakeEngine, seconds: float) -> Iterator[Any]:
    """An unload that begins with one running request, whose stream it gives."""
    stream: Any = FakeStream()
    runner.submit(REQUEST, None, None, stream)
    assert engine.added.acquire(timeout=30)
    drain = threading.Thread(target=runner.drain, args=(seconds,))
    drain.start()
    yield stream
    runner.forget(stream)
    drain.join(30)


def test_an_unload_ends_what_outlives_it(runner: RequestRunner, engine: FakeEngine) -> None:
    with unloading(runner, engine, 0.1) as stream:
        assert engine.aborted.acquire(timeout=30)
        assert stream.failed.code is Code.UNAVAILABLE


def test_cancellations_are_seen_during_an_unload(runner: RequestRunner, engine: FakeEngine) -> None:
    refused: Any = FakeStream()

    def is_unloading() -> bool:
        try:
            runner.submit(REQUEST, None, None, refused)
        except RequestError:
            return True
        return False

    with unloading(runner, engine, 30.0) as stream:
        assert eventually(is_unloading)
        stream.cancelled = True
        assert engine.aborted.acquire(timeout=10)
        assert stream.failed.code is Code.CANCELLED
        runner.forget(refused)
