"""The `parameters` of config.pbtxt: a mistake in one fails the load before vLLM is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_triton_backend.errors import LoadError


@dataclass(frozen=True)
class Parameters:
    """The `parameters` of config.pbtxt that this backend reads (values are strings there).

    report_custom_metrics   REPORT_CUSTOM_METRICS: "true" exports vLLM's metrics through Triton
    health_check            ENABLE_VLLM_HEALTH_CHECK: "true" asks the engine before each request
    gpu_device_ids          GPU_DEVICE_IDS: "0,1", or one slice per instance "0,1;2,3"
    max_inflight_requests   MAX_INFLIGHT_REQUESTS: more are refused with UNAVAILABLE; 0 = no limit
    drain_timeout           DRAIN_TIMEOUT_SECONDS: how long unload waits for running requests
    sender_threads          SENDER_THREADS: threads that hand responses to Triton
    shared_engine           SHARED_ENGINE: "true" lets all instances of the model use one engine
    stream_pause            STREAM_PAUSE_MICROSECONDS (here in seconds): a stream waits this long,
                            times the number of live requests, between two responses; 0 = never
    """

    report_custom_metrics: bool = False
    health_check: bool = False
    gpu_device_ids: tuple[tuple[int, ...], ...] = ()
    max_inflight_requests: int = 0
    drain_timeout: float = 20.0
    sender_threads: int = 2
    stream_pause: float = 1e-3
    shared_engine: bool = False

    @classmethod
    def from_model_config(cls, model_config: Mapping[str, Any]) -> Parameters:
        """Read `model_config["parameters"]`.

        Raises:
            LoadError: naming the parameter whose value makes no sense.
        """
        given: Mapping[str, Any] = model_config.get("parameters") or {}

        def text(name: str) -> str:
            value = given.get(name, {})
            return str(value.get("string_value", "") if isinstance(value, Mapping) else value)

        return cls(
            # Upstream's rule: anything but "true" (in any case) is off.
            report_custom_metrics=text("REPORT_CUSTOM_METRICS").lower() == "true",
            health_check=text("ENABLE_VLLM_HEALTH_CHECK").lower() == "true",
            gpu_device_ids=parse_gpu_device_ids(text("GPU_DEVICE_IDS")),
            max_inflight_requests=int(_number("MAX_INFLIGHT_REQUESTS", text, 0, whole=True)),
            drain_timeout=_number("DRAIN_TIMEOUT_SECONDS", text, cls.drain_timeout),
            sender_threads=max(
                1, int(_number("SENDER_THREADS", text, cls.sender_threads, whole=True))
            ),
            shared_engine=text("SHARED_ENGINE").lower() == "true",
            stream_pause=_number("STREAM_PAUSE_MICROSECONDS", text, cls.stream_pause * 1e6) / 1e6,
        )


def _number(name: str, text: Any, default: float, *, whole: bool = False) -> float:
    given = text(name).strip()
    if not given:
        return default
    try:
        value = int(given) if whole else float(given)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise LoadError(f"parameter {name} must be {kind} of at least 0, got '{given}'")
    return value


def parse_gpu_device_ids(text: str) -> tuple[tuple[int, ...], ...]:
    """ "0,1;2,3" -> ((0, 1), (2, 3)); an empty text -> ().

    Raises:
        LoadError: an id is not a whole number of at least 0, or comes twice.
    """
    if not text.strip():
        return ()
    slices = []
    for part in text.split(";"):
        ids = []
        for item in part.split(","):
            if not item.strip().isascii() or not item.strip().isdigit():
                raise LoadError(
                    f"parameter GPU_DEVICE_IDS must list whole numbers of at least 0, got '{text}'"
                )
            ids.append(int(item))
        slices.append(tuple(ids))
    flat = [device for ids in slices for device in ids]
    if len(set(flat)) != len(flat):
        raise LoadError(f"parameter GPU_DEVICE_IDS names a GPU twice: '{text}'")
    return tuple(slices)
