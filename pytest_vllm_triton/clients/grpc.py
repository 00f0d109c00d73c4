"""Triton over gRPC: streaming inference with the messages as they are on the wire.

tritonclient's own stream drops the id and the final flag of an error response, both of which are
under test, so this client uses tritonclient's generated stubs directly.
"""

from __future__ import annotations

import queue
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pytest_vllm_triton.clients.messages import (
    DEADLINE_SECONDS,
    GenerateRequest,
    Generation,
    Response,
    Tensor,
    Unanswered,
)
from pytest_vllm_triton.expect import Words
from pytest_vllm_triton.transcript import Excerpt, Transcript

_NUMPY_OF = {
    "BOOL": np.bool_,
    "UINT32": np.uint32,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}

# An option of a channel, or it would go through a proxy of the user's.
NO_PROXY = ("grpc.enable_http_proxy", 0)
# What every gRPC client takes, as it is.
_METADATA_BYTES = 8192


class GrpcClient:
    """gRPC client of one server and one model.

    Args:
        address: ``host:port``.
        model: the model that `generate` and `open` talk to.
        transcript: where requests and answers are noted.
        deadline: seconds after which a call that has not ended is an `Unanswered` violation.
    """

    def __init__(
        self,
        address: str,
        model: str,
        transcript: Transcript | None = None,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self.address = address
        self.model = model
        self._transcript = transcript or Transcript()
        self._deadline = deadline
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # A channel of its own: tests that kill one connection must not share it.
                ("grpc.use_local_subchannel_pool", 1),
                NO_PROXY,
                # A client takes all trailers up to the first size (8 KiB by default) and none above
                # the second (16 KiB); in between it refuses some, at random. A check must not
                # depend on chance, so both sizes are the same.
                ("grpc.max_metadata_size", _METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
            ],
        )
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def for_model(self, model: str) -> GrpcClient:
        """A client of another model on the same server; it shares the transcript."""
        return GrpcClient(self.address, model, self._transcript, self._deadline)

    def generate(self, request: GenerateRequest, **message_fields: Any) -> Generation:
        """Send one request on a stream of its own and read until the server ends the stream."""
        return self.exchange([infer_request(self.model, request, **message_fields)], request)

    def exchange(
        self, messages: Sequence[Any], request: GenerateRequest | None = None
    ) -> Generation:
        """Send raw ModelInferRequest messages on one stream and read all responses.

        Raises:
            Unanswered: the stream did not end within the deadline.
        """
        with self.open() as stream:
            for message in messages:
                stream.send(message)
            stream.half_close()
            responses = list(stream)
        return Generation(request or GenerateRequest(), responses, stream.status, stream.seconds)

    def until_error(self, request: GenerateRequest) -> Generation:
        """Send one request in the mode in which an error ends the stream, with its gRPC status.

        The client does not end its side before: when both sides end such a stream at one moment,
        Triton 24.10 can crash ("HandleCancellation called even when the context was not
        cancelled", then signal 11).
        """
        responses = []
        self._transcript.note_crash_risk()
        with self.open(metadata=[("triton_grpc_error", "true")]) as stream:
            stream.send(request)
            for response in stream:
                responses.append(response)
                if response.final:
                    break
        return Generation(request, responses, stream.status, stream.seconds)

    def open(
        self, *, metadata: Iterable[tuple[str, str | bytes]] = (), deadline: float | None = None
    ) -> GrpcStream:
        """A bidirectional stream that the caller drives."""
        return GrpcStream(
            self.stub, self.model, tuple(metadata), deadline or self._deadline, self._transcript
        )


class GrpcStream:
    """One ModelStreamInfer call. Iterate it for responses; it ends when the server ends the stream.

    It is a context manager, at whose end the call is cancelled and noted in the transcript.

    Attributes:
        status: "OK", or the gRPC status name with which the call ended, e.g. ``"CANCELLED"``.
        detail: the status text of a failed call.
    """

    def __init__(
        self,
        stub: Any,
        model: str,
        metadata: tuple[tuple[str, str | bytes], ...],
        deadline: float,
        transcript: Transcript,
    ) -> None:
        self._model = model
        self._deadline = deadline
        self._transcript = transcript
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._title = " ".join(["gRPC ModelStreamInfer", *(f"({name})" for name, _ in metadata)])
        self._recording = ExitStack()
        self._sent: Excerpt[Any] = Excerpt()
        self._received: Excerpt[Response] = Excerpt()
        self._started = time.monotonic()
        self.status = "OK"
        self.detail = ""
        self._call = stub.ModelStreamInfer(
            iter(self._outgoing.get, None), timeout=deadline, metadata=metadata
        )

    def __enter__(self) -> GrpcStream:
        self._exchange = self._recording.enter_context(self._transcript.record(self._title))
        return self

    def __exit__(self, *_: object) -> None:
        self.half_close()
        self.cancel()
        self._exchange.asked(f"{self._title} {self._sent.shown(_shown_message)}")
        count, responses = self._received.count, self._received.shown(_shown_response)
        self._exchange.answered(f"{self.status}, {count} response(s): {responses}")
        self._recording.close()

    @property
    def seconds(self) -> float:
        """Since the stream was opened."""
        return time.monotonic() - self._started

    def send(self, request: GenerateRequest | Any, **message_fields: Any) -> None:
        """Send a request (or a raw ModelInferRequest message)."""
        if isinstance(request, GenerateRequest):
            request = infer_request(self._model, request, **message_fields)
        self._sent.add(request)
        self._outgoing.put(request)

    def half_close(self) -> None:
        """No more requests: the server ends the stream after the last response."""
        self._outgoing.put(None)

    def cancel(self) -> None:
        """Cancel the call: all its requests end as cancelled. Harmless when it has ended."""
        if self._call.is_active():
            self._transcript.note_crash_risk()
        self._call.cancel()
        # Or gRPC's thread, which waits for what is to be sent next, would do so for ever.
        self._outgoing.put(None)

    def __iter__(self) -> Iterator[Response]:
        try:
            for message in self._call:
                response = to_response(message, self.seconds)
                self._received.add(response)
                yield response
        except grpc.RpcError as error:
            self.status = error.code().name
            self.detail = str(error.details())
            if self.status == "DEADLINE_EXCEEDED":
                self._transcript.note_crash_risk()
                expected = Words(f"its end within {self._deadline:.0f} s")
                raise Unanswered("gRPC stream", expected, Words(self.detail)) from None
            if self.status != "CANCELLED":
                response = Response(outputs={}, error=self.detail, at=self.seconds)
                self._received.add(response)
                yield response


def infer_request(
    model: str,
    request: GenerateRequest,
    *,
    version: str = "",
    empty_final: bool = False,
) -> Any:
    """The ModelInferRequest message of a request."""
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request.id)
    for name, value in request.named_inputs().items():
        values = value if isinstance(value, list) else [value]
        datatype = "BOOL" if isinstance(values[0], bool) else "BYTES"
        add_input(message, name, datatype, [len(values)], values)
    for output in request.outputs or ():
        message.outputs.add(name=output)
    parameters: dict[str, Any] = dict(request.parameters)
    if empty_final:
        parameters["triton_enable_empty_final_response"] = True
    for name, value in parameters.items():
        _set_parameter(message.parameters[name], name, value)
    return message


def add_input(
    message: Any, name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]
) -> None:
    """Append an input tensor; datatype and shape may deliberately be wrong."""
    message.inputs.add(name=name, datatype=datatype, shape=list(shape))
    if datatype == "BYTES":
        raw = b"".join(
            struct.pack("<I", len(piece)) + piece
            for piece in (v.encode() if isinstance(v, str) else bytes(v) for v in values)
        )
    else:
        raw = np.asarray(values, dtype=_NUMPY_OF[datatype]).tobytes()
    message.raw_input_contents.append(raw)


def to_response(message: Any, at: float) -> Response:
    """A ModelStreamInferResponse message as a `Response`."""
    inner = message.infer_response
    final = inner.parameters.get("triton_final_response") if inner.parameters else None
    return Response(
        outputs={
            output.name: Tensor(_decode(output.datatype, raw), output.datatype, tuple(output.shape))
            for output, raw in zip(inner.outputs, inner.raw_output_contents, strict=False)
        },
        error=message.error_message or None,
        id=inner.id,
        final=None if final is None else final.bool_param,
        at=at,
        model_name=inner.model_name,
        model_version=inner.model_version,
    )


def _set_parameter(target: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        # Triton reads the reserved "priority" as unsigned.
        if name == "priority":
            target.uint64_param = value
        else:
            target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    else:
        target.string_param = str(value)


def _decode(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, dtype=_NUMPY_OF[datatype]).tolist())
    values, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        values.append(raw[at + 4 : at + 4 + length].decode("utf-8", errors="surrogateescape"))
        at += 4 + length
    return values


def _shown_message(message: Any) -> str:
    parts = [f"model={message.model_name}"]
    if message.id:
        parts.append(f"id={message.id}")
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=False):
        shown: Any = raw if tensor.datatype not in ("BYTES", "BOOL") else None
        if shown is None:
            try:
                shown = _decode(tensor.datatype, raw)
            except struct.error:
                shown = raw
        parts.append(f"{tensor.name}={shown}")
    if message.parameters:
        parts.append(f"parameters={ {k: str(v).strip() for k, v in message.parameters.items()} }")
    return " ".join(parts)


def _shown_response(response: Response) -> str:
    id_ = f"id={response.id} " if response.id else ""
    if response.error is not None:
        return f"{id_}error: {response.error}"
    return f"{id_}{ {name: tensor.values for name, tensor in response.outputs.items()} }"
