"""Triton's ModelStreamInfer over plain HTTP/2 frames: one connection, one call per request.

grpcio would spend several times as much of the client's CPU on a response as the SSE client does,
and on a small machine that would be measured instead of the server. A call needs little of HTTP/2:
request headers are sent without compression tables, response headers are not looked into (an
answer is judged by its content), and the windows are opened once, wide enough for a whole run. The
library h2 does all that this leaves out, in Python, for each frame; hyperframe would spare only the
packing of the nine bytes before it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from benchmarks.lanes import Lane, Record, Wire, clock
from benchmarks.workload import Workload

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_CANCEL = 8
_WIDEST = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    """HPACK: a literal that enters no table."""
    short = (name.encode(), value.encode())
    assert all(len(text) < 127 for text in short)
    return b"\0" + b"".join(bytes([len(text)]) + text for text in short)


class FrameLane(Lane):
    """One call at a time on a shared connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.stream = 0

    def send(self, payload: bytes, record: Record) -> None:
        self.record = record
        record.sent = clock()
        self._connection.request(self, payload)

    def cancel(self) -> None:
        if self.stream:
            self._connection.reset(self)
            self.end("cancelled")

    def end(self, error: str | None = None) -> None:
        self.stream = 0
        self._end(error)


class Connection(asyncio.Protocol):
    """One HTTP/2 connection to a gRPC server."""

    def __init__(self, authority: str) -> None:
        self._headers = b"".join(
            _header(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", _PATH),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        self._transport: asyncio.Transport | None = None
        self._lanes: dict[int, FrameLane] = {}
        self._next_stream = 1
        self._buffer = b""
        self._window = _DEFAULT_WINDOW
        self._waiting: deque[tuple[FrameLane, bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # 1: HEADER_TABLE_SIZE, 4: INITIAL_WINDOW_SIZE
        settings = struct.pack(">HIHI", 1, 0, 4, _WIDEST)
        self._write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WIDEST - _DEFAULT_WINDOW))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.end(f"connection lost ({exc})")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def request(self, lane: FrameLane, message: bytes) -> None:
        """Start a call with its one message."""
        if self._transport is None:
            asyncio.get_running_loop().call_soon(lane.end, "no connection")
        elif self._waiting or len(message) > self._window:
            self._waiting.append((lane, message))
        else:
            self._window -= len(message)
            lane.stream = stream = self._next_stream
            self._next_stream += 2
            self._lanes[stream] = lane
            self._write(
                _frame(_HEADERS, _END_HEADERS, stream, self._headers)
                + _frame(_DATA, _END_STREAM, stream, message)
            )

    def reset(self, lane: FrameLane) -> None:
        """Cancel the call of this lane."""
        if self._lanes.pop(lane.stream, None) is not None:
            self._write(_frame(_RST_STREAM, 0, lane.stream, struct.pack(">I", _CANCEL)))

    def data_received(self, data: bytes) -> None:
        now = clock()
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while end - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if end - at - 9 < length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            payload = buffer[at + 9 : at + 9 + length]
            at += 9 + length
            if kind in (_DATA, _HEADERS):
                lane = self._lanes.get(stream)
                if lane is None:
                    continue
                if kind == _DATA:
                    if flags & _PADDED:
                        payload = payload[1 : len(payload) - payload[0]]
                    lane.record.chunks.append((now, payload))
                if flags & _END_STREAM:
                    del self._lanes[stream]
                    lane.end()
            else:
                self._control(kind, flags, stream, payload)
        self._buffer = buffer[at:]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self._write(_frame(_SETTINGS, _ACK, 0))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            waiting, self._waiting = self._waiting, deque()
            for lane, message in waiting:
                self.request(lane, message)
        elif kind == _RST_STREAM:
            lost = self._lanes.pop(stream, None)
            if lost is not None:
                lost.end(f"reset by the server ({int.from_bytes(payload, 'big')})")
        elif kind == _GOAWAY:
            self.close()


class TritonGrpc(Wire):
    """Triton's streaming gRPC endpoint."""

    def __init__(self, host: str, port: int, model: str, workload: Workload) -> None:
        from tritonclient.grpc import service_pb2

        self._messages: Any = service_pb2
        self._host = host
        self._port = port
        self._model = model
        self._sampling = json.dumps(workload.sampling).encode()
        self._connection: Connection | None = None

    async def connect(self, count: int) -> list[Lane]:
        connection = Connection(f"{self._host}:{self._port}")
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, self._host, self._port)
        self._connection = connection
        return [FrameLane(connection) for _ in range(count)]

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def payload(self, prompt: str) -> bytes:
        request = self._messages.ModelInferRequest(model_name=self._model)
        for name, datatype, raw in (
            ("text_input", "BYTES", _string(prompt.encode())),
            ("stream", "BOOL", b"\1"),
            ("exclude_input_in_output", "BOOL", b"\1"),
            ("sampling_parameters", "BYTES", _string(self._sampling)),
        ):
            request.inputs.add(name=name, datatype=datatype, shape=[1])
            request.raw_input_contents.append(raw)
        message = request.SerializeToString()
        return struct.pack(">BI", 0, len(message)) + bytes(message)

    def texts(self, record: Record) -> Iterator[tuple[float, str]]:
        buffer = b""
        for at, data in record.chunks:
            buffer += data
            while len(buffer) >= 5:
                length = int.from_bytes(buffer[1:5], "big")
                if len(buffer) < 5 + length:
                    break
                response = self._messages.ModelStreamInferResponse.FromString(
                    buffer[5 : 5 + length]
                )
                buffer = buffer[5 + length :]
                if response.error_message:
                    raise ValueError(response.error_message)
                yield at, _text(response.infer_response)


def _string(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _text(response: Any) -> str:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == "text_output":
            return str(bytes(raw[4:]).decode("utf-8", "replace"))
    return ""
