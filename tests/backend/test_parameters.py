"""The parameters of config.pbtxt."""

from __future__ import annotations

import pytest
from vllm_triton_backend.errors import LoadError
from vllm_triton_backend.parameters import Parameters, parse_gpu_device_ids


def test_parameters_have_defaults_and_are_read() -> None:
    assert Parameters.from_model_config({}) == Parameters()
    given = {
        "REPORT_CUSTOM_METRICS": {"string_value": "TRUE"},
        "ENABLE_VLLM_HEALTH_CHECK": {"string_value": "1"},
        "GPU_DEVICE_IDS": {"string_value": "0,1;2,3"},
        "MAX_INFLIGHT_REQUESTS": {"string_value": "8"},
        "DRAIN_TIMEOUT_SECONDS": {"string_value": "1.5"},
    }
    assert Parameters.from_model_config({"parameters": given}) == Parameters(
        report_custom_metrics=True,
        health_check=False,
        gpu_device_ids=((0, 1), (2, 3)),
        max_inflight_requests=8,
        drain_timeout=1.5,
    )


@pytest.mark.parametrize("name", ["MAX_INFLIGHT_REQUESTS", "DRAIN_TIMEOUT_SECONDS"])
@pytest.mark.parametrize("value", ["-1", "x", "inf", "nan"])
def test_a_bad_number_names_the_parameter(name: str, value: str) -> None:
    with pytest.raises(LoadError, match=name):
        Parameters.from_model_config({"parameters": {name: {"string_value": value}}})


@pytest.mark.parametrize("text", ["a", "-1", "0,", "0,0", "0;0", "1.5"])
def test_bad_gpu_device_ids(text: str) -> None:
    with pytest.raises(LoadError, match="GPU_DEVICE_IDS"):
        parse_gpu_device_ids(text)
