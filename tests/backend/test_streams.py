"""The FIFO of one request: order, coalescing, errors, the final flag."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.requests import GenerateRequest, Wanted
from vllm_triton_backend.responses import GenerateFormatter
from vllm_triton_backend.streams import ResponseStream, SenderPool
from waiting import eventually


class FakeSender:
    """Records what is sent; `gate` holds up `send` as a busy server does."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def send(self, response: Any, flags: int = 0) -> None:
        self.entered.set()
        assert self.gate.wait(5)
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return True


def output(text: str, reason: str | None = None, index: int = 0, tokens: int = 1) -> Any:
    part = SimpleNamespace(
        index=index,
        text=text,
        token_ids=[0] * tokens,
        cumulative_logprob=None,
        logprobs=None,
        finish_reason=reason,
    )
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], outputs=[part])


def formatter(n: int = 1, **wanted: bool) -> GenerateFormatter:
    request = GenerateRequest("", "p", True, False, Wanted(**wanted), {})
    return GenerateFormatter(request, n, False)


class Bench:
    def __init__(self, n: int = 1, pause: float = 0.0, **wanted: bool) -> None:
        self.sender = FakeSender()
        self.closed = threading.Event()
        self.pool = SenderPool(2, lambda stream: self.closed.set(), lambda: pause)
        self.stream = ResponseStream(self.sender, formatter(n, **wanted), self.pool)

    def wait(self) -> list[tuple[Any, int]]:
        assert self.closed.wait(5)
        self.pool.close(5)
        return self.sender.sent

    def until_paused(self) -> None:
        deadline = time.monotonic() + 5
        while self.stream._paused_until == 0.0:
            assert time.monotonic() < deadline

    def busy(self) -> None:
        """Hold the sender up inside its first send."""
        self.sender.gate.clear()
        self.stream.put(output("first"))
        assert self.sender.entered.wait(5)


def texts(sent: list[tuple[Any, int]], index: int = 0) -> list[str]:
    return [item.tensors["text_output"][index].decode() for item, _ in sent if not item.error]


def test_what_piles_up_becomes_one_final_response() -> None:
    bench = Bench(num_output_tokens=True)
    bench.busy()
    bench.stream.put(output(" a"))
    bench.stream.put(output(" b", tokens=2))
    bench.stream.put(output(" c", "stop"), last=True)
    bench.sender.gate.set()
    sent = bench.wait()
    assert texts(sent) == ["first", " a b c"]
    assert [flags for _, flags in sent] == [0, 1]
    assert [item.tensors["num_output_tokens"].tolist() for item, _ in sent] == [[1], [4]]


def test_an_error_does_not_overtake_data() -> None:
    bench = Bench()
    bench.busy()
    bench.stream.put(output(" a"))
    bench.stream.fail(RequestError(Code.INTERNAL, "broken"))
    bench.stream.fail(RequestError(Code.INTERNAL, "again"))
    bench.stream.put(output("lost"))
    bench.sender.gate.set()
    sent = bench.wait()
    assert texts(sent) == ["first", " a"]
    assert [(item.error.message if item.error else None, flags) for item, flags in sent] == [
        (None, 0),
        (None, 0),
        ("broken", 1),
    ]


def test_deltas_without_text_wait_for_the_next_one() -> None:
    bench = Bench(finish_reason=True)
    for part in (output(""), output("x"), output("")):
        bench.stream.put(part)
    bench.stream.put(output("", "length"), last=True)
    sent = bench.wait()
    assert "".join(texts(sent)) == "x"
    assert "" not in texts(sent)[:-1]
    assert sent[-1][0].tensors["finish_reason"].tolist() == [b"length"]


def test_sequences_keep_their_index() -> None:
    bench = Bench(2, finish_reason=True)
    bench.stream.put(output("a", index=1))
    bench.stream.put(output("b", "stop", index=0))
    bench.stream.put(output("c", "length", index=1), last=True)
    sent = bench.wait()
    assert ["".join(texts(sent, index)) for index in (0, 1)] == ["b", "ac"]
    assert sent[-1][0].tensors["finish_reason"].tolist() == [b"stop", b"length"]
    assert all(item.tensors["text_output"].shape == (2,) for item, _ in sent)


@pytest.mark.parametrize(("reason", "code"), [("error", "INTERNAL"), ("abort", "UNAVAILABLE")])
def test_a_sequence_that_the_engine_gave_up_is_an_error(reason: str, code: str) -> None:
    bench = Bench()
    bench.stream.put(output("", reason), last=True)
    ((item, flags),) = bench.wait()
    assert flags == 1
    assert item.error.code == getattr(type(item.error), code)


def test_the_sender_is_dropped_and_not_asked_after_the_end() -> None:
    bench = Bench()
    assert bench.stream.is_cancelled()
    bench.stream.put(output("x", "stop"), last=True)
    bench.wait()
    assert not bench.stream.is_cancelled()
    assert bench.stream._sender is None


def test_a_sender_that_fails_ends_the_stream() -> None:
    bench = Bench()
    bench.sender.send = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("gone"))  # type: ignore[method-assign]
    bench.stream.put(output("x"))
    assert bench.closed.wait(5)
    bench.pool.close(5)


def test_shapes_and_types() -> None:
    flags = ("finish_reason", "logprobs", "num_input_tokens", "num_output_tokens")
    made = formatter(**dict.fromkeys(flags, True), cumulative_logprob=True)
    response = made.build([output("x", "stop")], True)
    tensors = response.tensors
    assert set(tensors) == {"text_output", *flags}
    assert tensors["logprobs"].tolist() == [b"null"]
    assert (tensors["num_input_tokens"].dtype, tensors["num_input_tokens"].tolist()) == (
        np.uint32,
        [3],
    )


def test_a_paused_stream_keeps_the_rest_for_its_last_response() -> None:
    bench = Bench(pause=60.0)
    bench.stream.put(output("first"))
    assert bench.sender.entered.wait(5)
    bench.until_paused()
    for text in (" a", " b"):
        bench.stream.put(output(text))
    bench.stream.put(output(" c", "stop"), last=True)
    assert texts(bench.wait()) == ["first", " a b c"]


def test_what_a_pause_held_back_is_sent_without_a_further_output() -> None:
    bench = Bench(pause=60.0)
    bench.stream.put(output("first"))
    assert bench.sender.entered.wait(5)
    bench.until_paused()
    bench.sender.entered.clear()
    bench.stream.put(output(" a"))
    bench.stream.resume()
    assert not bench.sender.entered.is_set()
    bench.stream._paused_until = 0.0
    bench.stream.resume()
    assert bench.sender.entered.wait(5)
    bench.stream.put(output(" b", "stop"), last=True)
    assert texts(bench.wait()) == ["first", " a", " b"]


def test_what_comes_while_the_pool_is_closed_is_sent() -> None:
    """A thread is sending when the stream's error and the end of the pool come."""
    bench = Bench()
    bench.busy()
    bench.stream.fail(RequestError(Code.UNAVAILABLE, "over"))
    closing = threading.Thread(target=bench.pool.close, args=(5,))
    closing.start()
    # One of the two threads has nothing to do, and ends.
    assert eventually(lambda: sum(thread.is_alive() for thread in bench.pool._threads) == 1)
    bench.sender.gate.set()
    closing.join(5)
    assert [flags for _, flags in bench.sender.sent] == [0, 1]
    assert bench.sender.sent[-1][0].error.message == "over"
