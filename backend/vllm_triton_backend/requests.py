"""One Triton request -> one frozen value, with every check that needs no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_triton_backend.errors import invalid
from vllm_triton_backend.sampling import MOST_INT, Mismatch, ParameterParser, coerce, read_json
from vllm_triton_backend.tensors import FLAG_INPUTS

STREAM_ECHO = (
    "Error generating stream: When streaming, `exclude_input_in_output` = False is not allowed."
)
_TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which outputs the request asks for: by its `return_*` inputs, and by naming outputs.

    A tensor that the client does not name must not be built: the server would drop it in
    `ResponseSender.send`, which does not hold the interpreter lock, and freeing a NumPy array
    without it crashes the stub.
    """

    text_output: bool = True
    finish_reason: bool = False
    cumulative_logprob: bool = False
    logprobs: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request for text.

    request_id     Triton's id, "" when the client gave none
    prompt         the text, decoded
    stream         one response per delta instead of one in all
    echo_prompt    prepend the prompt (unary only)
    sampling       client values, not yet converted
    lora_name      adapter name, None for the base model
    images         base64 or data: URLs, not yet decoded
    priority       vLLM's: lower runs earlier
    timeout        seconds after which the request is given up, 0 for never
    trace_headers  W3C trace context, None when there is none
    """

    request_id: str
    prompt: str
    stream: bool
    echo_prompt: bool
    wanted: Wanted
    sampling: Mapping[str, Any]
    lora_name: str | None = None
    images: tuple[bytes, ...] = ()
    priority: int = 0
    timeout: float = 0.0
    trace_headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """A request for one embedding: a text or token ids, and parameters for the pooler."""

    request_id: str
    input: str | tuple[int, ...]
    pooling: Mapping[str, Any]
    wanted: Wanted
    priority: int = 0
    timeout: float = 0.0
    trace_headers: Mapping[str, str] | None = None


def parse(request: Any, sampling: ParameterParser) -> GenerateRequest | EmbedRequest:
    """Read a `pb_utils.InferenceRequest`.

    Raises:
        RequestError: INVALID_ARG naming the input or parameter at fault.
    """
    tensors = {tensor.name(): tensor for tensor in request.inputs()}
    parameters = _parameters(request)
    flags = _flags(tensors, parameters)
    wanted = _wanted(request, flags)
    request_id = _utf8(request.request_id) or ""
    timeout = _timeout(request, parameters)
    trace_headers = _trace_headers(request, parameters)
    if "embedding_request" in tensors:
        priority = _priority(_given_priority(parameters))
        content, pooling = _embedding(_text(tensors, "embedding_request"))
        return EmbedRequest(
            request_id=request_id,
            input=content,
            pooling=pooling,
            wanted=wanted,
            priority=priority,
            timeout=timeout,
            trace_headers=trace_headers,
        )
    if "text_input" not in tensors:
        raise invalid("Input 'text_input' is required: one string.")
    prompt = _text(tensors, "text_input")
    stream = flags.get("stream", False)
    exclude = flags.get("exclude_input_in_output")
    if stream and exclude is False:
        raise invalid(STREAM_ECHO)
    given, lora_name, priority = _sampling(tensors, parameters, sampling)
    return GenerateRequest(
        request_id=request_id,
        prompt=prompt,
        stream=stream,
        echo_prompt=not stream and not exclude,
        wanted=wanted,
        sampling=given,
        lora_name=lora_name,
        images=_images(tensors),
        priority=priority,
        timeout=timeout,
        trace_headers=trace_headers,
    )


def _flags(tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, bool]:
    """The BOOL inputs that are given, as tensors or else as request parameters."""
    flags = {name: _flag(tensors, name) for name in FLAG_INPUTS if name in tensors}
    for name in FLAG_INPUTS - flags.keys():
        value = parameters.get(name)
        if isinstance(value, bool):
            flags[name] = value
    return flags


def _wanted(request: Any, flags: Mapping[str, bool]) -> Wanted:
    named = set(request.requested_output_names())  # all of the model's if the client names none

    def wants(output: str) -> bool:
        return flags.get(f"return_{output}", False) and output in named

    return Wanted(
        text_output="text_output" in named,
        finish_reason=wants("finish_reason"),
        cumulative_logprob=wants("cumulative_logprob"),
        logprobs=wants("logprobs"),
        num_input_tokens=wants("num_input_tokens"),
        num_output_tokens=wants("num_output_tokens"),
    )


def _sampling(
    tensors: Mapping[str, Any], parameters: Mapping[str, Any], sampling: ParameterParser
) -> tuple[Mapping[str, Any], str | None, int]:
    """Client values for vLLM's SamplingParams, the adapter's name, and the priority."""
    if "sampling_parameters" in tensors:
        # Upstream's rule: the tensor wins as a whole, request parameters are not merged in.
        given = sampling.from_json(_text(tensors, "sampling_parameters"))
        lora_name, priority = given.pop("lora_name", None), given.pop("priority", None)
    else:
        rest = {
            name: value
            for name, value in parameters.items()
            if name not in FLAG_INPUTS and name not in ("lora_name", "priority", "timeout")
        }
        given = sampling.pick_request_parameters(rest)
        lora_name, priority = parameters.get("lora_name"), _given_priority(parameters)
    if lora_name is not None and not isinstance(lora_name, str):
        raise invalid("Invalid sampling_parameters: 'lora_name' must be a string.")
    return given, lora_name or None, _priority(priority)


def _utf8(read: Callable[[], str]) -> str:
    """A text of Triton's, which may hold any bytes, as a forwarded binary header (`…-bin`) does."""
    try:
        return read()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", errors="replace")


def _parameters(request: Any) -> Mapping[str, Any]:
    text = _utf8(request.parameters)
    if not text or text == "{}":
        return {}
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}


def _flag(tensors: Mapping[str, Any], name: str) -> bool:
    values = tensors[name].as_numpy().reshape(-1)
    if values.size != 1:
        raise invalid(f"Input '{name}' must hold one boolean, got {values.size} values.")
    return bool(values[0])


def _text(tensors: Mapping[str, Any], name: str) -> str:
    values = tensors[name].as_numpy().reshape(-1)
    if values.size != 1:
        raise invalid(f"Input '{name}' must hold one string, got {values.size}.")
    value = values[0]
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"Input '{name}' is not valid UTF-8: {error}") from None


def _images(tensors: Mapping[str, Any]) -> tuple[bytes, ...]:
    if "image" not in tensors:
        return ()
    return tuple(
        value.encode() if isinstance(value, str) else bytes(value)
        for value in tensors["image"].as_numpy().reshape(-1)
    )


def _given_priority(parameters: Mapping[str, Any]) -> Any:
    """The request parameter; a forwarded HTTP header of that name (RFC 9218) is a string and not
    meant for vLLM."""
    value = parameters.get("priority")
    return None if isinstance(value, str) else value


def _priority(value: Any) -> int:
    try:
        rank = 0 if value is None else int(coerce(value, int))
    except Mismatch as error:
        raise invalid(f"'priority' must be {error}.") from None
    if not -(2**63) <= rank < 2**63:
        raise invalid(f"'priority' must be an integer of 64 bits, got {rank}.")
    return rank


def _timeout(request: Any, parameters: Mapping[str, Any]) -> float:
    """Seconds. Triton counts in microseconds; over HTTP the value arrives as a parameter."""
    microseconds = request.timeout() if hasattr(request, "timeout") else 0
    given = parameters.get("timeout")
    if not microseconds and isinstance(given, int) and not isinstance(given, bool):
        microseconds = max(0, given)
    return float(microseconds) / 1e6


def _trace_headers(request: Any, parameters: Mapping[str, Any]) -> Mapping[str, str] | None:
    found = {
        name.lower(): value
        for name, value in parameters.items()
        if name.lower() in _TRACE_HEADERS and isinstance(value, str)
    }
    if "traceparent" in found:
        return found
    trace = request.trace() if hasattr(request, "trace") else None
    context = trace.get_context() if trace is not None else None
    if not context:
        return None
    try:
        value = json.loads(context)
    except ValueError:
        return None
    return {str(key): str(item) for key, item in value.items()} if value else None


def _embedding(text: str) -> tuple[str | tuple[int, ...], Mapping[str, Any]]:
    """The text or token ids, and the pooler's parameters."""
    try:
        value = read_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise invalid("Invalid embedding_request: expected a valid JSON object.")
    given = value.get("input")
    tokens = isinstance(given, list) and all(
        type(item) is int and 0 <= item <= MOST_INT for item in given
    )
    if isinstance(given, str) and given:
        content: str | tuple[int, ...] = given
    elif tokens and given:
        content = tuple(given)
    else:
        raise invalid(
            "Invalid embedding_request: 'input' must be a non-empty string or list of token ids."
        )
    pooling = value.get("pooling_params") or {}
    if not isinstance(pooling, dict):
        raise invalid("Invalid embedding_request: 'pooling_params' must be an object.")
    # Triton's OpenAI frontend wraps the number in a list.
    pooling = {
        key: item[0] if key == "dimensions" and isinstance(item, list) and len(item) == 1 else item
        for key, item in pooling.items()
        if item is not None
    }
    return content, pooling
