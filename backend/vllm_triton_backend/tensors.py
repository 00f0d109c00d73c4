"""The tensors of a model of this backend: config.pbtxt is completed with them, or must have them.

Triton's auto-complete pass imports only this, therefore nothing of vLLM or numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_triton_backend.errors import LoadError

# Contract of triton-inference-server/vllm_backend, model.py `auto_complete_config`.
_OPTIONAL_FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
INPUTS: tuple[dict[str, Any], ...] = (
    {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]},
    {"name": "image", "data_type": "TYPE_STRING", "dims": [-1], "optional": True},
    {"name": "sampling_parameters", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    {"name": "embedding_request", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    *(
        {"name": name, "data_type": "TYPE_BOOL", "dims": [1], "optional": True}
        for name in _OPTIONAL_FLAGS
    ),
)
OUTPUTS: tuple[dict[str, Any], ...] = (
    {"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "finish_reason", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "cumulative_logprob", "data_type": "TYPE_FP32", "dims": [-1]},
    {"name": "logprobs", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "num_input_tokens", "data_type": "TYPE_UINT32", "dims": [1]},
    {"name": "num_output_tokens", "data_type": "TYPE_UINT32", "dims": [-1]},
)
FLAG_INPUTS = frozenset(_OPTIONAL_FLAGS)


def auto_complete(model_config: Any) -> Any:
    """Add what `config.pbtxt` leaves out; returns the given `pb_utils.ModelConfig`.

    A tensor that config.pbtxt describes stays as it is there.

    Raises:
        ValueError: from `pb_utils`, naming the setting, when config.pbtxt asks for a batch size or
            for a transaction policy that is not decoupled.
    """
    given = model_config.as_dict()
    for key, table, add in (
        ("input", INPUTS, model_config.add_input),
        ("output", OUTPUTS, model_config.add_output),
    ):
        known = {tensor["name"] for tensor in given.get(key, [])}
        for tensor in table:
            if tensor["name"] not in known:
                add(dict(tensor))
    # vLLM batches by itself, and one request may have many responses.
    model_config.set_model_transaction_policy({"decoupled": True})
    model_config.set_max_batch_size(0)
    return model_config


def check_completed(model_config: Mapping[str, Any]) -> None:
    """Refuse a configuration that the auto-complete pass did not see and that is incomplete.

    Raises:
        LoadError: saying what config.pbtxt must hold under --disable-auto-complete-config.
    """

    def names(tensors: Sequence[Mapping[str, Any]]) -> set[str]:
        return {str(tensor["name"]) for tensor in tensors}

    missing = []
    if not (model_config.get("model_transaction_policy") or {}).get("decoupled"):
        missing.append("model_transaction_policy { decoupled: true }")
    if "text_input" not in names(model_config.get("input") or ()):
        missing.append("input 'text_input' (TYPE_STRING, dims [1])")
    if "text_output" not in names(model_config.get("output") or ()):
        missing.append("output 'text_output' (TYPE_STRING, dims [-1])")
    if missing:
        raise LoadError(
            "config.pbtxt is incomplete and the server runs with --disable-auto-complete-config; "
            f"it must also hold {', '.join(missing)}"
        )
