"""A tiny OPT checkpoint with random weights: a model about whose answers nothing is known.

python tests/random_opt.py FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pytest_vllm_triton.models.under_test import known_answer_model

# vLLM's CPU attention wants heads of at least 32.
HIDDEN, HEADS, LAYERS, FEED_FORWARD, POSITIONS = 64, 2, 2, 128, 2048
# OPT counts positions from here.
POSITION_OFFSET = 2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_random_opt(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint; the tokenizer is the known-answer model's."""
    known = known_answer_model().path
    assert known is not None
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((known / "config.json").read_text(encoding="utf-8"))
    config.update(
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        ffn_dim=FEED_FORWARD,
        max_position_embeddings=POSITIONS,
        dtype="float32",
        torch_dtype="float32",
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (known / name).is_file():
            shutil.copy(known / name, folder / name)
    save_file(_weights(config["vocab_size"], seed), folder / "model.safetensors")
    return folder


def _weights(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.5).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int) -> dict[str, np.ndarray]:
        zeros = np.zeros(outputs, np.float32)
        return {f"{name}.weight": matrix(outputs, inputs), f"{name}.bias": zeros}

    def norm(name: str) -> dict[str, np.ndarray]:
        ones, zeros = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
        return {f"{name}.weight": ones, f"{name}.bias": zeros}

    decoder = "model.decoder"
    weights = {
        f"{decoder}.embed_tokens.weight": matrix(vocabulary, HIDDEN),
        f"{decoder}.embed_positions.weight": matrix(POSITIONS + POSITION_OFFSET, HIDDEN),
        **norm(f"{decoder}.final_layer_norm"),
    }
    for index in range(LAYERS):
        layer = f"{decoder}.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= linear(f"{layer}.self_attn.{projection}", HIDDEN, HIDDEN)
        weights |= linear(f"{layer}.fc1", FEED_FORWARD, HIDDEN)
        weights |= linear(f"{layer}.fc2", HIDDEN, FEED_FORWARD)
        weights |= norm(f"{layer}.self_attn_layer_norm") | norm(f"{layer}.final_layer_norm")
    return weights


if __name__ == "__main__":
    print(write_random_opt(Path(sys.argv[1])))
