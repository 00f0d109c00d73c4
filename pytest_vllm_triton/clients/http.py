"""Triton over HTTP: the generate endpoints, server-sent events, and raw requests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import httpx

from pytest_vllm_triton.clients.messages import (
    DEADLINE_SECONDS,
    GenerateRequest,
    Generation,
    Response,
    Tensor,
    Unanswered,
)
from pytest_vllm_triton.expect import Violation, Words, json_object, json_value
from pytest_vllm_triton.plain_http import plain_client
from pytest_vllm_triton.transcript import Transcript

_NOT_OUTPUTS = frozenset({"model_name", "model_version", "id", "error", "parameters"})
_EVENT_PREFIX = b"data: "
_EVENT_END = b"\n\n"


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP response, read to its end.

    Attributes:
        events: the server-sent events as (seconds after the request, raw bytes without the blank
            line); empty unless the content type is an event stream.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    seconds: float
    events: tuple[tuple[float, bytes], ...] = ()

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Violation: it is not JSON.
        """
        return json_value("body", self.content)

    def json_object(self) -> dict[str, Any]:
        """The fields of the body.

        Raises:
            Violation: it is not a JSON object.
        """
        return json_object("body", self.content)

    @property
    def error(self) -> str | None:
        """The ``error`` field of the body or of the first event that has one.

        Raises:
            Violation: the body, or an event that is looked at, is not JSON.
        """
        for content in [event for _, event in self.events] or [self.content]:
            value = json_value("body", content.removeprefix(_EVENT_PREFIX)) if content else {}
            if isinstance(value, dict) and "error" in value:
                return str(value["error"])
        return None


def fields_of_event(event: bytes) -> dict[str, Any]:
    """The fields of a server-sent event.

    Raises:
        Violation: it is not a JSON object.
    """
    return json_object("event", event.removeprefix(_EVENT_PREFIX))


def text_of_event(event: bytes) -> str:
    """``text_output`` of a server-sent event of generate_stream.

    Raises:
        Violation: it is an error, or of another form.
    """
    text = fields_of_event(event).get("text_output")
    if not isinstance(text, str):
        raise Violation("event", Words('data: {…, "text_output": "…"}'), event)
    return text


class HttpClient:
    """HTTP client of one server and one model.

    Args:
        url: e.g. ``http://127.0.0.1:8000``.
        model: the model that `generate` talks to and `path` names.
        transcript: where requests and answers are noted.
        deadline: seconds after which an unanswered request is an `Unanswered` violation.
    """

    def __init__(
        self,
        url: str,
        model: str,
        transcript: Transcript | None = None,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self.url = url
        self.model = model
        self._transcript = transcript or Transcript()
        self._deadline = deadline
        self._is_owner = True
        # Bodies are read as they come over the wire, so nothing may be compressed.
        headers = {"Accept-Encoding": "identity"}
        self._client = plain_client(deadline, base_url=url, headers=headers)

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. One of `for_model` leaves that to the client it comes from."""
        if self._is_owner:
            self._client.close()

    def for_model(self, model: str) -> HttpClient:
        """A client of another model on the same server; it shares transcript and connections."""
        other = copy(self)
        other.model = model
        other._is_owner = False
        return other

    def path(self, action: str, version: int | str | None = None) -> str:
        """``/v2/models/<model>[/versions/<version>]/<action>``."""
        versioned = f"/versions/{version}" if version is not None else ""
        return f"/v2/models/{self.model}{versioned}{action and '/' + action}"

    def request(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> HttpAnswer:
        """Send one request and read the whole answer.

        Raises:
            Unanswered: no complete answer within the deadline, or the connection broke.
        """
        if json_body is not None:
            content = json.dumps(json_body, ensure_ascii=False).encode()
        with self.opened(method, path, content, headers, deadline) as stream:
            for _ in stream.events():
                pass
            return stream.answer()

    def get(self, path: str) -> HttpAnswer:
        return self.request("GET", path)

    def generate(self, request: GenerateRequest, version: int | None = None) -> Generation:
        """``/generate``, or ``/generate_stream`` when the request streams."""
        action = "generate_stream" if request.stream else "generate"
        answer = self.request("POST", self.path(action, version), json_body=http_body(request))
        return to_generation(request, answer)

    @contextmanager
    def opened(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> Iterator[OpenAnswer]:
        """An answer that is being read: for checks that look at arrival times or hang up early."""
        shown = (content or b"").decode("utf-8", errors="backslashreplace")
        seconds = deadline or self._deadline
        with self._transcript.record(f"{method} {path} {shown}".rstrip()) as exchange:
            started = time.monotonic()
            try:
                with self._client.stream(
                    method, path, content=content, headers=dict(headers or {}), timeout=seconds
                ) as response:
                    stream = OpenAnswer(response, started, seconds)
                    try:
                        yield stream
                    finally:
                        exchange.answered(stream.shown())
            except httpx.HTTPError as error:
                expected = Words(f"an answer within {seconds:.0f} s")
                raise Unanswered(f"{method} {path}", expected, Words(repr(error))) from error


class OpenAnswer:
    """An HTTP response whose body is read piece by piece; times count from the request's start."""

    def __init__(self, response: httpx.Response, started: float, deadline: float) -> None:
        self._response = response
        self._started = started
        self._deadline = deadline
        self._body = bytearray()
        self._events: list[tuple[float, bytes]] = []
        self.status = response.status_code
        self.headers = response.headers

    def events(self) -> Iterator[tuple[float, bytes]]:
        """Server-sent events as they arrive: (seconds, bytes without the blank line)."""
        streaming = self.headers.get("content-type", "").startswith("text/event-stream")
        read = 0
        for piece in self._response.iter_raw():
            self._body += piece
            now = time.monotonic() - self._started
            if now > self._deadline:
                expected = Words(f"its end within {self._deadline:.0f} s")
                raise Unanswered("body", expected, Words(f"none after {now:.0f} s"))
            while streaming and (end := self._body.find(_EVENT_END, read)) >= 0:
                event = (now, bytes(self._body[read:end]))
                read = end + len(_EVENT_END)
                self._events.append(event)
                yield event

    def answer(self) -> HttpAnswer:
        """What was read so far."""
        return HttpAnswer(
            status=self.status,
            headers=self.headers,
            content=bytes(self._body),
            seconds=time.monotonic() - self._started,
            events=tuple(self._events),
        )

    def shown(self) -> str:
        return f"{self.status} {self._body.decode('utf-8', errors='backslashreplace')}"


def http_body(request: GenerateRequest) -> dict[str, Any]:
    """The JSON body of a generate request."""
    body: dict[str, Any] = dict(request.named_inputs())
    for name, value in body.items():
        if isinstance(value, bytes):
            raise ValueError(f"{name}: raw bytes cannot be sent as JSON")
    if request.parameters:
        body["parameters"] = dict(request.parameters)
    if request.id:
        body["id"] = request.id
    return body


def to_generation(request: GenerateRequest, answer: HttpAnswer) -> Generation:
    """The answer of a generate endpoint as responses."""
    pieces = [(at, event.removeprefix(_EVENT_PREFIX)) for at, event in answer.events]
    if not pieces:
        pieces = [(answer.seconds, answer.content)]
    return Generation(
        request=request,
        responses=[_response(json_object("body", content), at) for at, content in pieces],
        status=answer.status,
        seconds=answer.seconds,
    )


def _response(fields: Mapping[str, Any], at: float) -> Response:
    outputs = {
        name: Tensor(value if isinstance(value, list) else [value])
        for name, value in fields.items()
        if name not in _NOT_OUTPUTS
    }
    return Response(
        outputs=outputs,
        error=None if "error" not in fields else str(fields["error"]),
        id=str(fields.get("id", "")),
        at=at,
        model_name=str(fields.get("model_name", "")),
        model_version=str(fields.get("model_version", "")),
    )
