"""One client process of the load generator; `load.ClientPool` starts and drives it.

It reads a job as a line of JSON, opens its connections, says it is ready, reads when to begin,
keeps its streams busy (each sends its next request when the last is answered) until the time is
over, checks what it got, and writes its `Figures` as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.digest import Figures, Request
from benchmarks.grpc_frames import TritonGrpc
from benchmarks.lanes import Lane, Record, Wire, clock
from benchmarks.sse import OpenAiSse, TritonSse
from benchmarks.workload import Workload

WIRES: dict[str, Callable[[str, int, str, Workload], Wire]] = {
    "triton-grpc": TritonGrpc,
    "triton-http": TritonSse,
    "openai": OpenAiSse,
}
#: Requests are encoded beforehand; a longer run sends the same ones again.
PREPARED = 2048
#: An answer that takes longer than this is none.
PATIENCE_SECONDS = 120.0


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


@contextlib.contextmanager
def first_in_line() -> Iterator[bool]:
    """Real-time priority, where we may (yields whether): no token waits for the client's turn.

    A user's client is on another machine. Here, vLLM's engine and worker for CPUs poll, each on a
    core of its own, and on a machine of two cores a client, which only reads a socket now and then,
    got its turn when the whole answer had arrived.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class ClosedLoop:
    """Keeps lanes busy until the deadline."""

    def __init__(self, lanes: list[Lane], payloads: list[bytes]) -> None:
        self.records: list[Record] = []
        self._lanes = lanes
        self._payloads = payloads
        self._deadline = 0.0
        self._running = 0
        self._done: asyncio.Future[None] | None = None

    async def run(self, start: float, seconds: float) -> None:
        await asyncio.sleep(max(0.0, start - clock()))
        self._done = asyncio.get_running_loop().create_future()
        self._deadline = start + seconds
        self._running = len(self._lanes)
        for lane in self._lanes:
            lane.on_end = self._ended
            self._send(lane)
        await asyncio.wait_for(self._done, seconds + PATIENCE_SECONDS)

    def _send(self, lane: Lane) -> None:
        record = Record()
        payload = self._payloads[len(self.records) % len(self._payloads)]
        self.records.append(record)
        lane.send(payload, record)

    def _ended(self, lane: Lane) -> None:
        if clock() < self._deadline and lane.record.error is None:
            self._send(lane)
            return
        self._running -= 1
        if self._running == 0 and self._done is not None and not self._done.done():
            self._done.set_result(None)


def requests_of(wire: Wire, records: list[Record]) -> Iterator[Request]:
    """The requests with their texts taken out of the raw answers."""
    for record in records:
        texts: list[tuple[float, str]] = []
        error = record.error
        if not record.ended:
            error, record.ended = f"no end within {PATIENCE_SECONDS:g} s", clock()
        if error is None:
            try:
                texts = list(wire.texts(record))
            except (ValueError, LookupError, TypeError) as failure:
                error = f"{type(failure).__name__}: {failure}"
        yield Request(record.sent, record.ended, texts, error)


def run_job(
    job: dict[str, Any], say: Callable[[dict[str, Any]], None], hear: Callable[[], dict[str, Any]]
) -> None:
    loop = new_loop()
    workload = Workload.from_json(job["workload"])
    wire = WIRES[job["wire"]](job["host"], job["port"], job["model"], workload)
    payloads = [
        wire.payload(workload.prompt(job["first"] + job["step"] * number))
        for number in range(PREPARED)
    ]
    try:
        lanes = loop.run_until_complete(wire.connect(job["streams"]))
        load = ClosedLoop(lanes, payloads)
        say({"ready": True})
        start = hear()["start"]
        gc.collect()
        gc.disable()
        before = time.process_time()
        try:
            with first_in_line():
                loop.run_until_complete(load.run(start, job["seconds"]))
        except asyncio.TimeoutError:
            pass  # shows in the records
        finally:
            cpu = time.process_time() - before
            gc.enable()
        say(Figures.of(requests_of(wire, load.records), workload, cpu).to_json())
        loop.run_until_complete(wire.close())
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


def main() -> None:
    # The benchmark decides when to end; it closes our standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def hear() -> dict[str, Any]:
        value: dict[str, Any] = json.loads(sys.stdin.readline())
        return value

    for line in sys.stdin:
        run_job(json.loads(line), say, hear)


if __name__ == "__main__":
    main()
