"""What a check needs of the engine: how much it takes in one sequence, and how many of them."""

from __future__ import annotations

import json
from typing import Any

from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

# What config.json calls it, by architecture.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def needs_context(harness: Harness, tokens: int) -> None:
    """The check is untested where the model is known to take fewer tokens.

    vLLM ends an answer where the context does, without an error.
    """
    limit = _context_length(harness)
    if limit is not None and limit < tokens:
        untested(f"needs a context of {tokens} tokens; the model has {limit}")


def needs_many_sequences(harness: Harness) -> None:
    """The check is untested where it is not vLLM that says how many sequences run at a time."""
    if "max_num_seqs" in harness.provision.settings.model_json:
        untested("--vllm-model-json says how many sequences the engine takes")
    if not harness.shared_server().owned:
        untested("an attached server's engine may take few sequences at a time")


def _context_length(harness: Harness) -> int | None:
    provision = harness.provision
    path = provision.model.path
    config: dict[str, Any] = {}
    if path is not None:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    limits = [provision.settings.model_json.get("max_model_len"), *map(config.get, _LENGTHS)]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
