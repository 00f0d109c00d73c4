"""The tensors that config.pbtxt must have."""

from __future__ import annotations

import pytest
from vllm_triton_backend import tensors
from vllm_triton_backend.errors import LoadError


def test_an_incomplete_config_says_what_is_missing() -> None:
    with pytest.raises(LoadError, match=r"decoupled: true.*text_input.*text_output"):
        tensors.check_completed({"input": [], "output": []})
    tensors.check_completed(
        {
            "model_transaction_policy": {"decoupled": True},
            "input": list(tensors.INPUTS),
            "output": list(tensors.OUTPUTS),
        }
    )
