"""What vLLM's outputs become."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from vllm_triton_backend.errors import Code, RequestError
from vllm_triton_backend.requests import Wanted
from vllm_triton_backend.responses import EmbedFormatter, logprobs_json


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_logprobs_are_json_whatever_their_value(value: float) -> None:
    """RFC 8259 knows neither infinity nor NaN, though Python's parser takes both."""
    candidates = {
        1: SimpleNamespace(logprob=-0.5, rank=1, decoded_token="a"),
        2: SimpleNamespace(logprob=value, rank=2, decoded_token="b"),
    }
    (entry,) = json.loads(logprobs_json([candidates]), parse_constant=pytest.fail)
    assert [told["logprob"] for told in entry.values()] == [-0.5, -9999.0]


def test_a_vector_that_is_no_json_is_the_models_failure() -> None:
    data = np.array([0.5, np.nan], dtype=np.float32)
    output = SimpleNamespace(outputs=SimpleNamespace(data=data), prompt_token_ids=[1])
    with pytest.raises(RequestError, match="NaN") as caught:
        EmbedFormatter(Wanted()).build([output], final=True)
    assert caught.value.code is Code.INTERNAL
