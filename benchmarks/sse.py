"""Server-sent events over HTTP/1.1: one connection per stream, kept open between requests."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, cast

from benchmarks.lanes import Lane, Record, Wire, clock
from benchmarks.workload import Workload

_HEAD_END = b"\r\n\r\n"
#: The end of the last event's chunk, and the empty chunk.
_BODY_END = b"\r\n0\r\n\r\n"


class SseLane(Lane, asyncio.Protocol):
    """One connection."""

    def __init__(self, connect: Callable[[SseLane], Any]) -> None:
        self._connect = connect
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._head: bytes | None = b""
        self._tail = b""
        self._task: asyncio.Task[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._busy:
            self._finish(f"connection lost ({exc})")

    def send(self, payload: bytes, record: Record) -> None:
        self.record = record
        self._busy, self._head, self._tail = True, b"", b""
        record.sent = clock()
        if self._transport is not None:
            self._transport.write(payload)
        else:
            self._task = asyncio.ensure_future(self._send_anew(payload))

    async def _send_anew(self, payload: bytes) -> None:
        await self._connect(self)
        assert self._transport is not None
        self._transport.write(payload)

    def cancel(self) -> None:
        if self._busy:
            if self._transport is not None:
                self._transport.abort()
                self._transport = None
            self._finish("cancelled")

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            return
        self.record.chunks.append((clock(), data))
        if self._head is not None:
            self._head += data
            if _HEAD_END not in self._head:
                return
            head = self._head.partition(_HEAD_END)[0].lower()
            if not (head.startswith(b"http/1.1 200") and b"chunked" in head):
                self._finish(f"answered {self._head[:500]!r}")
                return
            self._head = None
        self._tail = (self._tail + data)[-len(_BODY_END) :]
        if self._tail == _BODY_END:
            self._finish()

    def _finish(self, error: str | None = None) -> None:
        self._busy = False
        self._end(error)


class SseWire(Wire):
    """A server that answers a POST with events of one JSON object each."""

    path = "/"

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lanes: list[SseLane] = []

    async def connect(self, count: int) -> list[Lane]:
        self._lanes = [SseLane(self._open) for _ in range(count)]
        for lane in self._lanes:
            await self._open(lane)
        return list(self._lanes)

    async def _open(self, lane: SseLane) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: lane, self._host, self._port)

    async def close(self) -> None:
        for lane in self._lanes:
            if lane._transport is not None:
                lane._transport.close()

    def payload(self, prompt: str) -> bytes:
        body = json.dumps(self.body(prompt)).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def texts(self, record: Record) -> Iterator[tuple[float, str]]:
        for at, event in _events(record.chunks):
            value = json.loads(event)
            error = value.get("error")
            if error is not None:
                raise ValueError(str(error))
            yield at, self.text(value)

    @abstractmethod
    def body(self, prompt: str) -> dict[str, Any]:
        """The JSON object of a request."""

    @abstractmethod
    def text(self, event: dict[str, Any]) -> str:
        """The text in one event."""


class TritonSse(SseWire):
    """Triton's generate_stream."""

    def __init__(self, host: str, port: int, model: str, workload: Workload) -> None:
        super().__init__(host, port)
        self.path = f"/v2/models/{model}/generate_stream"
        self._sampling = json.dumps(workload.sampling)

    def body(self, prompt: str) -> dict[str, Any]:
        return {
            "text_input": prompt,
            "stream": True,
            "exclude_input_in_output": True,
            "sampling_parameters": self._sampling,
        }

    def text(self, event: dict[str, Any]) -> str:
        return str(event["text_output"])


class OpenAiSse(SseWire):
    """`vllm serve`'s completions."""

    path = "/v1/completions"

    def __init__(self, host: str, port: int, model: str, workload: Workload) -> None:
        super().__init__(host, port)
        self._fixed = {"model": model, "stream": True, **workload.sampling}

    def body(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, **self._fixed}

    def text(self, event: dict[str, Any]) -> str:
        return str(event["choices"][0]["text"]) if event["choices"] else ""


def _events(chunks: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(arrival, data) of each event of a chunked response, with its head."""
    head, raw, body = True, b"", b""
    for at, data in chunks:
        raw += data
        if head:
            _, found, rest = raw.partition(_HEAD_END)
            if not found:
                continue
            head, raw = False, rest
        while True:
            size_line, found, rest = raw.partition(b"\r\n")
            size = int(size_line, 16) if found and size_line else -1
            if size <= 0 or len(rest) < size + 2:
                break
            body, raw = body + rest[:size], rest[size + 2 :]
        *lines, body = body.split(b"\n")
        for line in lines:
            line = line.strip()
            if line.startswith(b"data:") and line != b"data: [DONE]":
                yield at, line[5:]
