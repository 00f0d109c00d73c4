"""The parameters of config.pbtxt."""

from __future__ import annotations

import pytest
from vllm_triton_backend.errors import LoadError
from vllm_triton_backend.parameters import Parameters


def read(name: str, value: str) -> Parameters:
    return Parameters.from_model_config({"parameters": {name: {"string_value": value}}})


def test_parameters_have_defaults_and_are_read() -> None:
    assert Parameters.from_model_config({}) == Parameters()
    given = {
        "REPORT_CUSTOM_METRICS": {"string_value": "TRUE"},
        "ENABLE_VLLM_HEALTH_CHECK": {"string_value": "1"},
        "GPU_DEVICE_IDS": {"string_value": "0,1;2,3"},
        "MAX_INFLIGHT_REQUESTS": {"string_value": " 8"},
        "DRAIN_TIMEOUT_SECONDS": {"string_value": "1.5"},
        "SENDER_THREADS": {"string_value": "3"},
        "STREAM_PAUSE_MICROSECONDS": {"string_value": "500"},
        "SHARED_ENGINE": {"string_value": "true"},
    }
    assert Parameters.from_model_config({"parameters": given}) == Parameters(
        report_custom_metrics=True,
        health_check=False,
        gpu_device_ids=((0, 1), (2, 3)),
        max_inflight_requests=8,
        drain_timeout=1.5,
        sender_threads=3,
        stream_pause=0.0005,
        shared_engine=True,
    )


@pytest.mark.parametrize("name", ["GPU_DEVICE_IDS", "SENDER_THREADS", "DRAIN_TIMEOUT_SECONDS"])
def test_an_empty_parameter_is_none(name: str) -> None:
    assert read(name, " ") == Parameters()


def test_zero_is_a_value() -> None:
    assert read("DRAIN_TIMEOUT_SECONDS", "0").drain_timeout == 0
    assert read("STREAM_PAUSE_MICROSECONDS", "0").stream_pause == 0


@pytest.mark.parametrize(
    "name", ["MAX_INFLIGHT_REQUESTS", "DRAIN_TIMEOUT_SECONDS", "STREAM_PAUSE_MICROSECONDS"]
)
@pytest.mark.parametrize("value", ["-1", "x", "inf", "nan"])
def test_a_bad_number_names_the_parameter(name: str, value: str) -> None:
    with pytest.raises(LoadError, match=f"^parameter {name} must be a .*, got '{value}'$"):
        read(name, value)


@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_without_a_sender_thread_nothing_would_be_sent(value: str) -> None:
    words = f"parameter SENDER_THREADS must be a whole number of at least 1, got '{value}'"
    with pytest.raises(LoadError, match=f"^{words}$"):
        read("SENDER_THREADS", value)


@pytest.mark.parametrize("text", ["a", "-1", "0,", "0,0", "0;0", "1.5"])
def test_bad_gpu_device_ids(text: str) -> None:
    with pytest.raises(LoadError, match=r"^parameter GPU_DEVICE_IDS "):
        read("GPU_DEVICE_IDS", text)
