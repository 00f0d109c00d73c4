"""The `parameters` of config.pbtxt: a mistake in one fails the load before vLLM is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from vllm_triton_backend.errors import LoadError

T = TypeVar("T")
Number = TypeVar("Number", int, float)


def _parameter(name: str, read: Callable[[str], T], default: T) -> T:
    """A field that holds what `read` makes of the parameter's text, or `default` without one.

    `read` raises ValueError with the rest of a sentence that begins with the parameter's name.
    """
    return field(default=default, metadata={"name": name, "read": read})


def _switch(text: str) -> bool:
    """Upstream's rule: anything but "true" (in any case) is off."""
    return text.lower() == "true"


def _number(kind: Callable[[str], Number], least: int = 0) -> Callable[[str], Number]:
    """Reads a finite number of at least `least`."""
    words = "a whole number" if kind is int else "a number"

    def read(text: str) -> Number:
        try:
            value: Number | None = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):
            raise ValueError(f"must be {words} of at least {least}, got '{text.strip()}'")
        return value

    return read


def _microseconds(text: str) -> float:
    """In seconds."""
    return _number(float)(text) / 1e6


def _gpu_device_ids(text: str) -> tuple[tuple[int, ...], ...]:
    """ "0,1;2,3" -> ((0, 1), (2, 3))."""
    slices = []
    for part in text.split(";"):
        ids = []
        for item in part.split(","):
            if not item.strip().isascii() or not item.strip().isdigit():
                raise ValueError(f"must list whole numbers of at least 0, got '{text}'")
            ids.append(int(item))
        slices.append(tuple(ids))
    flat = [device for ids in slices for device in ids]
    if len(set(flat)) != len(flat):
        raise ValueError(f"names a GPU twice: '{text}'")
    return tuple(slices)


@dataclass(frozen=True)
class Parameters:
    """The parameters that this backend reads; docs/backend.md says more of each."""

    #: "true" exports vLLM's metrics through Triton.
    report_custom_metrics: bool = _parameter("REPORT_CUSTOM_METRICS", _switch, False)
    #: "true" asks the engine before each request.
    health_check: bool = _parameter("ENABLE_VLLM_HEALTH_CHECK", _switch, False)
    #: "0,1", or one slice per instance "0,1;2,3".
    gpu_device_ids: tuple[tuple[int, ...], ...] = _parameter("GPU_DEVICE_IDS", _gpu_device_ids, ())
    #: More are refused with UNAVAILABLE; 0 = no limit.
    max_inflight_requests: int = _parameter("MAX_INFLIGHT_REQUESTS", _number(int), 0)
    #: How long unload waits for running requests.
    drain_timeout: float = _parameter("DRAIN_TIMEOUT_SECONDS", _number(float), 20.0)
    #: Threads that hand responses to Triton.
    sender_threads: int = _parameter("SENDER_THREADS", _number(int, least=1), 2)
    #: Seconds, times the number of live requests, between two responses of a stream; 0 = none, and
    #: None = as suits the engine.
    stream_pause: float | None = _parameter("STREAM_PAUSE_MICROSECONDS", _microseconds, None)
    #: "true" lets all instances of the model use one engine.
    shared_engine: bool = _parameter("SHARED_ENGINE", _switch, False)

    @classmethod
    def from_model_config(cls, model_config: Mapping[str, Any]) -> Parameters:
        """Read `model_config["parameters"]`, in which values are strings.

        Raises:
            LoadError: naming the parameter whose value makes no sense.
        """
        given: Mapping[str, Any] = model_config.get("parameters") or {}
        values: dict[str, Any] = {}
        for parameter in fields(cls):
            name = parameter.metadata["name"]
            value = given.get(name, "")
            text = str(value.get("string_value", "") if isinstance(value, Mapping) else value)
            if not text.strip():
                continue
            try:
                values[parameter.name] = parameter.metadata["read"](text)
            except ValueError as error:
                raise LoadError(f"parameter {name} {error}") from None
        return cls(**values)
