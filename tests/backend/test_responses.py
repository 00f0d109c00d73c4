"""What vLLM's outputs become."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from vllm_triton_backend.responses import logprobs_json


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_logprobs_are_json_whatever_their_value(value: float) -> None:
    """RFC 8259 knows neither infinity nor NaN, though Python's parser takes both."""
    candidates = {
        1: SimpleNamespace(logprob=-0.5, rank=1, decoded_token="a"),
        2: SimpleNamespace(logprob=value, rank=2, decoded_token="b"),
    }
    (entry,) = json.loads(logprobs_json([candidates]), parse_constant=pytest.fail)
    assert [told["logprob"] for told in entry.values()] == [-0.5, -9999.0]
