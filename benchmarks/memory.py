"""Does the stub grow? ``python -m benchmarks.memory``

Its resident memory after the first 500 requests is compared with that after all 5,000; half of all
requests are cancelled at random times, half go over gRPC and half over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import cpu
from benchmarks.cli import add_server_options, make_bench, pairs
from benchmarks.client import new_loop
from benchmarks.grpc_frames import TritonGrpc
from benchmarks.lanes import Lane, Record, Wire, clock
from benchmarks.load import ROOT
from benchmarks.sse import TritonSse
from benchmarks.systems import MODEL_NAME, TritonServer
from benchmarks.workload import Workload
from pytest_vllm_triton.errors import ServerFailed, UserError

CANCELLED_SHARE = 0.5
#: Requests in flight are over and threads have let go of what they held.
SETTLE_SECONDS = 3.0


class Churn:
    """Keeps lanes busy with a given number of requests and cancels some of them.

    Attributes:
        outcomes: "complete", "cancelled" or what went wrong -> number of requests.
    """

    def __init__(self, wires: Sequence[Wire], workload: Workload, rng: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._wires = wires
        self._workload = workload
        self._random = rng
        self._longest = 0.0
        self._left = 0
        self._number = 0
        self._running = 0
        self._done: asyncio.Future[None] | None = None
        self._wire_of: dict[Lane, Wire] = {}

    async def connect(self, streams: int) -> None:
        for number, wire in enumerate(self._wires):
            share = streams // len(self._wires) + (number < streams % len(self._wires))
            for lane in await wire.connect(share):
                lane.on_end = self._ended
                self._wire_of[lane] = wire

    async def run(self, requests: int) -> None:
        """Send so many requests; returns when all of them have ended."""
        self._left = requests
        self._done = asyncio.get_running_loop().create_future()
        for lane in self._wire_of:
            self._next(lane)
        await self._done

    def _next(self, lane: Lane) -> None:
        if self._left == 0:
            if self._running == 0 and self._done is not None and not self._done.done():
                self._done.set_result(None)
            return
        self._left -= 1
        self._running += 1
        self._number += 1
        record = Record()
        lane.send(self._wire_of[lane].payload(self._workload.prompt(self._number % 16384)), record)
        if self._random.random() < CANCELLED_SHARE and self._longest:
            delay = self._random.uniform(0, self._longest)
            asyncio.get_running_loop().call_later(delay, self._cancel, lane, record)

    def _cancel(self, lane: Lane, record: Record) -> None:
        if lane.record is record and not record.ended:
            lane.cancel()

    def _ended(self, lane: Lane) -> None:
        record = lane.record
        self._running -= 1
        # Cancellations fall all over the time that an answer takes at this load.
        self._longest = max(self._longest, record.ended - record.sent)
        self.outcomes[self._outcome(lane, record)] += 1
        # Not from within the callback: a cancelled lane is not ready for its next request yet.
        asyncio.get_running_loop().call_soon(self._next, lane)

    def _outcome(self, lane: Lane, record: Record) -> str:
        if record.error is not None:
            return record.error
        try:
            text = "".join(text for _, text in self._wire_of[lane].texts(record))
        except (ValueError, LookupError, TypeError) as failure:
            return f"{type(failure).__name__}: {failure}"
        return self._workload.problem(text) or "complete"


def resident(pid: int) -> dict[str, int]:
    """Kilobytes of resident memory: all, and its private part without shared memory and files."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            found[name] = int(value.split()[0])
    return found


async def measure(
    server: TritonServer, workload: Workload, options: argparse.Namespace
) -> dict[str, Any]:
    assert server.handle is not None
    endpoints = server.handle.endpoints
    grpc_host, _, grpc_port = endpoints.grpc.rpartition(":")
    http = urlsplit(endpoints.http)
    wires: list[Wire] = [
        TritonGrpc(grpc_host, int(grpc_port), MODEL_NAME, workload),
        TritonSse(str(http.hostname), http.port or 80, MODEL_NAME, workload),
    ]
    (stub,) = cpu.find(server.pids(), "stub")
    rng = random.Random(options.seed)
    churn = Churn(wires, workload, rng)
    await churn.connect(options.streams)
    began = clock()
    points: list[dict[str, Any]] = []
    sent = 0
    for goal in (options.first, options.last):
        await churn.run(goal - sent)
        sent = goal
        await asyncio.sleep(SETTLE_SECONDS)
        points.append({"requests": sent, "seconds": clock() - began, **resident(stub)})
        print(f"after {sent} requests: {resident(stub)} kB, {dict(churn.outcomes)}", flush=True)
    for wire in wires:
        await wire.close()
    same = cpu.find(server.pids(), "stub") == [stub]
    growth = {key: points[1][key] / points[0][key] - 1 for key in ("VmRSS", "RssAnon")}
    return {
        "points": points,
        "growth": growth,
        "outcomes": dict(churn.outcomes),
        "same_stub": same,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the memory stayed within the limit, else 1; 2 for wrong options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Resident memory of our stub after the first and after all requests.",
    )
    add_server_options(made)
    made.add_argument("--first", type=int, default=500, help="requests (default: 500)")
    made.add_argument("--last", type=int, default=5000, help="requests in all (default: 5000)")
    made.add_argument("--streams", type=int, default=64, help="at a time (default: 64)")
    made.add_argument("--limit", type=float, default=0.05, help="share of growth (default: 0.05)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, metavar="FILE")
    options = made.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            bench = make_bench(options, options.work_dir or Path(temporary))
            parameters = pairs(options.parameter, "--parameter")
            server = TritonServer(bench, "ours", ROOT / "backend", parameters, ("ours-grpc",))
            try:
                server.start()
                loop = new_loop()
                found = loop.run_until_complete(measure(server, bench.model.workload, options))
                loop.close()
            finally:
                server.stop()
    except (UserError, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wrong = {
        outcome: count
        for outcome, count in found["outcomes"].items()
        if outcome not in ("complete", "cancelled")
    }
    grown = found["growth"]["VmRSS"]
    print(f"resident memory grew by {100 * grown:.1f} % (limit {100 * options.limit:g} %)")
    if wrong:
        print(f"unexpected answers: {wrong}")
    if not found["same_stub"]:
        print("the stub was started anew")
    return 0 if grown <= options.limit and not wrong and found["same_stub"] else 1


if __name__ == "__main__":
    sys.exit(main())
