"""Which requests are let in, and the wait until none is left."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.live_requests import Live, LiveRequests
from vllm_triton_backend.requests import GenerateRequest, Wanted

REQUEST = GenerateRequest("", "p", True, False, Wanted(), {})
#: Far longer than any test takes.
LONG = 60.0


def request() -> Live:
    stream: Any = object()
    return Live(0, REQUEST, None, None, stream)


def refusal(live: LiveRequests) -> RequestError:
    with pytest.raises(RequestError) as caught:
        live.add(request())
    return caught.value


def test_the_limit_is_of_those_that_have_not_ended() -> None:
    live = LiveRequests(2)
    first, second = request(), request()
    live.add(first)
    live.add(second)
    assert refusal(live).code is Code.UNAVAILABLE
    assert "2 requests are in flight (MAX_INFLIGHT_REQUESTS)" in refusal(live).message
    assert live.remove(request().stream) is None, "one that was refused has no place to give back"
    assert refusal(live).code is Code.UNAVAILABLE
    assert live.remove(first.stream) is first
    assert live.remove(first.stream) is None
    live.add(request())
    assert len(live) == 2


def test_nothing_is_let_in_any_more() -> None:
    live = LiveRequests(0)
    live.add(request())
    live.refuse_more()
    assert "being unloaded" in refusal(live).message
    assert len(live.all()) == 1


def test_the_wait_ends_with_the_last_request() -> None:
    live = LiveRequests(0)
    one = request()
    live.add(one)
    timer = threading.Timer(0.1, live.remove, [one.stream])
    timer.start()
    started = time.monotonic()
    live.wait_until_idle(LONG, lambda: True)
    assert live.is_idle()
    assert time.monotonic() - started < LONG / 2
    timer.join()


@pytest.mark.parametrize(("timeout", "alive"), [(0.1, True), (LONG, False)])
def test_the_wait_ends_without_it_too(timeout: float, alive: bool) -> None:
    live = LiveRequests(0)
    live.add(request())
    started = time.monotonic()
    live.wait_until_idle(timeout, lambda: alive)
    assert not live.is_idle()
    assert time.monotonic() - started < LONG / 2
