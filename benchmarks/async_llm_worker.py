"""AsyncLLM in one process, without any server: run by the runtime's Python.

``python -m benchmarks.async_llm_worker SOCKET``: connects to the Unix socket, reads the engine
arguments and the workload as a line of JSON, then jobs, and answers each with a line.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import socket
import sys
import time
from typing import Any

from benchmarks.digest import Figures, Request
from benchmarks.workload import Workload

clock = time.monotonic


class Driver:
    """The same closed loop as `client.ClosedLoop`, on the engine itself."""

    def __init__(self, engine: Any, params: Any, workload: Workload) -> None:
        self._engine = engine
        self._params = params
        self._workload = workload
        self._number = 0

    async def run(self, streams: int, seconds: float) -> Figures:
        requests: list[Request] = []
        gc.collect()  # takes seconds, with all of vLLM loaded
        gc.disable()
        deadline = clock() + seconds
        before = time.process_time()
        await asyncio.gather(*(self._stream(deadline, requests) for _ in range(streams)))
        cpu = time.process_time() - before
        gc.enable()
        return Figures.of(requests, self._workload, cpu)

    async def _stream(self, deadline: float, requests: list[Request]) -> None:
        while True:
            self._number += 1
            prompt = self._workload.prompt(self._number % 16384)
            texts: list[tuple[float, str]] = []
            sent = clock()
            async for output in self._engine.generate(prompt, self._params, str(self._number)):
                texts.append((clock(), output.outputs[0].text))
            requests.append(Request(sent, clock(), texts))
            if clock() >= deadline:
                return


async def serve(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw", encoding="utf-8") as channel:
            await _serve(channel)


async def _serve(channel: Any) -> None:
    def say(value: dict[str, Any]) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    setup = json.loads(channel.readline())
    workload = Workload.from_json(setup["workload"])

    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**setup["engine_args"]))
    try:
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, **workload.sampling)
        driver = Driver(engine, params, workload)
        say({"ready": True})
        while line := await asyncio.to_thread(channel.readline):
            job = json.loads(line)
            say((await driver.run(job["streams"], job["seconds"])).to_json())
    finally:
        engine.shutdown()


def main() -> None:
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        asyncio.run(serve(sys.argv[1]))
    else:
        uvloop.run(serve(sys.argv[1]))


if __name__ == "__main__":
    main()
