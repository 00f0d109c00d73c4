"""One request to a vLLM model and what came back, independent of the protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from pytest_vllm_triton.expect import Violation, Words, json_value

# The type of each output's elements, over either protocol.
_ELEMENTS: Mapping[str, tuple[type, ...]] = {
    "text_output": (str,),
    "finish_reason": (str,),
    "logprobs": (str,),
    "cumulative_logprob": (float, int),
    "num_input_tokens": (int,),
    "num_output_tokens": (int,),
}
#: After so long a call without an end is a violation. A stream of a thousand tokens, of a model
#: that makes ten of them in a second, has ended by then.
DEADLINE_SECONDS = 120.0
_CANDIDATE = {"logprob", "rank", "decoded_token"}


class Unanswered(Violation):
    """The server gave no answer in time, or (over HTTP) the connection broke."""


@dataclass(frozen=True)
class GenerateRequest:
    """A request to a vLLM model. ``None`` leaves an input out.

    Attributes:
        text_input: the prompt; bytes (gRPC only) are sent as they are.
        stream: one response per step instead of one in all.
        sampling: the ``sampling_parameters`` input: a mapping becomes JSON; text and bytes are sent
            as they are, so that malformed ones can be sent too.
        exclude_input_in_output: leave the prompt out of a unary answer.
        returns: names of the additional outputs to ask for, e.g. ``("finish_reason", "logprobs")``.
        parameters: request parameters (HTTP ``parameters``, gRPC ``parameters``).
        id: the request id, "" for none.
        outputs: gRPC only: the outputs to request; None asks for all.
        inputs: further inputs, e.g. ``{"image": ["…base64…"]}``.
    """

    text_input: str | bytes | None = None
    stream: bool | None = None
    sampling: Mapping[str, Any] | str | bytes | None = None
    exclude_input_in_output: bool | None = None
    returns: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    outputs: tuple[str, ...] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> GenerateRequest:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def sampling_text(self) -> str | bytes | None:
        """``sampling_parameters`` as it is sent."""
        if isinstance(self.sampling, Mapping):
            return json.dumps(dict(self.sampling), ensure_ascii=False)
        return self.sampling

    def named_inputs(self) -> dict[str, Any]:
        """The inputs that are sent, by their Triton name."""
        optional: dict[str, Any] = {
            "text_input": self.text_input,
            "stream": self.stream,
            "sampling_parameters": self.sampling_text(),
            "exclude_input_in_output": self.exclude_input_in_output,
        }
        sent = {name: value for name, value in optional.items() if value is not None}
        sent.update({f"return_{name}": True for name in self.returns})
        sent.update(self.inputs)
        return sent


@dataclass(frozen=True)
class Tensor:
    """One output as it was sent.

    Attributes:
        values: flat list of str, int or float.
        datatype: Triton's name, e.g. ``"BYTES"``; "" over HTTP generate, which does not tell.
        shape: its dimensions; empty over HTTP generate.
    """

    values: list[Any]
    datatype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Response:
    """One message of the server.

    Attributes:
        outputs: output tensors by name; empty when it is an error.
        error: the error text, None when it is data.
        id: the request id that it carries.
        final: the ``triton_final_response`` parameter (gRPC); None when it was not sent.
        at: seconds after the request was sent.
        model_name, model_version: as sent by the server.
    """

    outputs: Mapping[str, Tensor]
    error: str | None = None
    id: str = ""
    final: bool | None = None
    at: float = 0.0
    model_name: str = ""
    model_version: str = ""

    def tensor(self, name: str) -> Tensor:
        """An output as it was sent.

        Raises:
            Violation: the response lacks it.
        """
        if name not in self.outputs:
            raise Violation(f"outputs of a response (error: {self.error})", name, [*self.outputs])
        return self.outputs[name]

    def values(self, name: str) -> list[Any]:
        """The values of an output.

        Raises:
            Violation: the response lacks it, or they are of another type than the contract's.
        """
        values = self.tensor(name).values
        kinds = _ELEMENTS.get(name, (object,))
        if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            names = Words(" or ".join(kind.__name__ for kind in kinds))
            raise Violation(f"type of the elements of {name}", names, values)
        return values

    def value(self, name: str, index: int = 0) -> Any:
        """One value of an output: that of the sequence at this index.

        Raises:
            Violation: see `values`; or there are not as many.
        """
        values = self.values(name)
        if index >= len(values):
            raise Violation(
                f"number of elements of {name}", Words(f"at least {index + 1}"), len(values)
            )
        return values[index]

    def logprobs(self, index: int = 0) -> list[dict[str, dict[str, Any]]]:
        """``logprobs`` of the sequence at this index, one object per token.

        Raises:
            Violation: they are not of that form.
        """
        return list(_logprob_entries(self.value("logprobs", index)))

    @property
    def text(self) -> str:
        """The first sequence's ``text_output``."""
        return str(self.value("text_output"))


@dataclass(frozen=True)
class Generation:
    """Everything that one request brought back.

    Attributes:
        request: what was asked.
        responses: in the order of arrival.
        status: the HTTP status, or the gRPC status name when the call itself failed, e.g.
            ``"CANCELLED"``; "OK" otherwise.
        seconds: until the last response or the end of the call.
    """

    request: GenerateRequest
    responses: Sequence[Response]
    status: int | str
    seconds: float

    @property
    def error(self) -> str | None:
        """The first error text, None if there was none."""
        return next((r.error for r in self.responses if r.error is not None), None)

    @property
    def data(self) -> list[Response]:
        """The responses that carry outputs."""
        return [r for r in self.responses if r.error is None and r.outputs]

    def ok(self) -> Generation:
        """Itself, when it brought data and no error.

        Raises:
            Violation: it failed.
        """
        if self.error is not None or self.status not in (200, "OK"):
            raise Violation(
                "answer", Words("a successful one"), Words(f"{self.status}: {self.error}")
            )
        if not self.data:
            raise Violation("number of responses with data", Words("at least 1"), 0)
        return self

    def failed(self) -> str:
        """The error text.

        Raises:
            Violation: it succeeded.
        """
        if self.error is None:
            raise Violation("answer", Words("an error"), [dict(r.outputs) for r in self.responses])
        return self.error

    def text_of(self, index: int) -> str:
        """The text of the sequence at this index (``n > 1``), deltas joined."""
        return "".join(str(r.value("text_output", index)) for r in self.ok().data)

    @property
    def text(self) -> str:
        """The text of the first sequence, deltas joined; with the prompt where it is echoed."""
        return self.text_of(0)

    def all_values(self, name: str) -> list[Any]:
        """The values of an output in all responses, joined in order."""
        return [value for r in self.ok().data for value in r.values(name)]

    def last(self, name: str) -> Any:
        """The first value of an output in the last response that carries data."""
        return self.ok().data[-1].value(name)

    def logprobs(self) -> list[dict[str, dict[str, Any]]]:
        """``logprobs`` of the first sequence, one object per token, streamed parts joined.

        Raises:
            Violation: they are not of that form.
        """
        joined: list[dict[str, dict[str, Any]]] = []
        for response in self.ok().data:
            joined.extend(response.logprobs())
        return joined


#: Sends a request and reads the answer to its end: a client's `generate`.
Generate: TypeAlias = Callable[[GenerateRequest], Generation]


def _logprob_entries(text: str) -> Iterator[dict[str, dict[str, Any]]]:
    entries = json_value("logprobs", text)
    if not isinstance(entries, list):
        raise Violation("logprobs", Words("a JSON list"), text)
    for entry in entries:
        candidates = entry.values() if isinstance(entry, dict) and entry else [None]
        if not all(isinstance(item, dict) and set(item) >= _CANDIDATE for item in candidates):
            raise Violation(
                "an entry of logprobs", Words(f"token id -> {sorted(_CANDIDATE)}"), entry
            )
        yield entry
