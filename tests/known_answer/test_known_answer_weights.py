"""The checkpoint's weights tell the story: a plain-NumPy OPT runs them, and no oracle code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from pytest_vllm_triton.known_answer import (
    BACKWARDS,
    LEAPS,
    OTHER_STORY,
    AdapterSpec,
    KnownAnswer,
    KnownAnswerSpec,
    build_adapter,
    build_checkpoint,
)

Array = npt.NDArray[np.float32]
LAYER = "model.decoder.layers.0."
# Lower than the default, so that a small fault shows as well as a large one.
SPEC = KnownAnswerSpec(margin=2.0)


@dataclass
class NumpyOpt:
    """OPT of one decoder layer, as its paper and Hugging Face's implementation have it."""

    weights: dict[str, Array]
    heads: int
    lora: tuple[Array, Array] | None = None
    dtype: Callable[[Array], Array] = lambda values: values

    @classmethod
    def load(cls, folder: Path, adapter: Path | None = None) -> NumpyOpt:
        weights = {
            k: v.astype(np.float32) for k, v in load_file(folder / "model.safetensors").items()
        }
        lora = None
        if adapter is not None:
            tensors = load_file(adapter / "adapter_model.safetensors")
            names = sorted(tensors)
            assert [name.split(".", 2)[2] for name in names] == [
                f"{LAYER}fc2.lora_A.weight",
                f"{LAYER}fc2.lora_B.weight",
            ]
            described = json.loads((adapter / "adapter_config.json").read_text())
            scaling = described["lora_alpha"] / described["r"]
            a, b = (tensors[name].astype(np.float32) for name in names)
            lora = (a, b * np.float32(scaling))
        return cls(
            weights, json.loads((folder / "config.json").read_text())["num_attention_heads"], lora
        )

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Logits after each token, shape [tokens, vocabulary]."""
        w = self.weights
        positions = w["model.decoder.embed_positions.weight"][2 : 2 + len(token_ids)]
        x = w["model.decoder.embed_tokens.weight"][list(token_ids)] + positions
        x = x + self._attention(self._norm(x, f"{LAYER}self_attn_layer_norm"))
        cells = self.dtype(
            np.maximum(self._linear(self._norm(x, f"{LAYER}final_layer_norm"), f"{LAYER}fc1"), 0)
        )
        told = self._linear(cells, f"{LAYER}fc2")
        if self.lora is not None:
            a, b = self.lora
            told += cells @ a.T @ b.T
        x = self.dtype(x + told)
        hidden = self._norm(x, "model.decoder.final_layer_norm")
        return self.dtype(hidden @ w["model.decoder.embed_tokens.weight"].T)

    def _linear(self, x: Array, name: str) -> Array:
        return self.dtype(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def _norm(self, x: Array, name: str) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float32(1e-5))
        return self.dtype(scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def _attention(self, x: Array) -> Array:
        tokens, hidden = x.shape
        size = hidden // self.heads
        q, k, v = (
            self._linear(x, f"{LAYER}self_attn.{p}_proj").reshape(tokens, self.heads, size)
            for p in "qkv"
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(size))
        scores[:, ~np.tril(np.ones((tokens, tokens), dtype=bool))] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(tokens, hidden)
        return self._linear(mixed, f"{LAYER}self_attn.out_proj")

    def would_say(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> bool:
        """Whether greedy decoding after the prompt gives `completion`, in one pass."""
        best = self.logits([*prompt_ids, *completion[:-1]])[len(prompt_ids) - 1 :].argmax(-1)
        return np.array_equal(best, completion)


def bfloat16(values: Array) -> Array:
    """`values` rounded to bfloat16 (nearest, ties to even)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known-answer")


@pytest.fixture
def model(cache: Path) -> NumpyOpt:
    return NumpyOpt.load(build_checkpoint(SPEC, cache))


def faults(model: NumpyOpt, oracle: KnownAnswer) -> list[str]:
    """Where the model departs from the oracle, in text and in logits; empty if nowhere."""
    found = []
    for prompt in ("Say alpha", "", " mike", "中"):
        prompt_ids = oracle.tokenize(prompt)
        expected = oracle.answer(prompt, max_tokens=60).token_ids
        if not model.would_say(prompt_ids, expected):
            found.append(f"text after {prompt!r}")
    every = range(oracle.vocab_size)
    wanted = np.stack([oracle.logits(token_id) for token_id in every])
    # In one row: what a token says must not depend on its neighbours or its place.
    told = model.logits(every)
    found += [
        f"logits after token {token_id}"
        for token_id in every
        if not np.allclose(told[token_id], wanted[token_id], atol=2e-4)
    ]
    return found


@pytest.mark.parametrize(
    "spec",
    [
        KnownAnswerSpec(),
        SPEC,
        KnownAnswerSpec(margin=0.25, seed=2**64 - 1),
        KnownAnswerSpec(margin=32),
        KnownAnswerSpec(story=OTHER_STORY, seed=3),
        KnownAnswerSpec(story=tuple(" " + c for c in "abcdef")),
    ],
    ids=["default", "margin 2", "margin 0.25", "margin 32", "other story", "short story"],
)
def test_weights_tell_what_the_oracle_says(cache: Path, spec: KnownAnswerSpec) -> None:
    assert faults(NumpyOpt.load(build_checkpoint(spec, cache)), KnownAnswer(spec)) == []


@pytest.mark.parametrize("rounding", [bfloat16, float16])
def test_logits_are_exact_in_every_type(
    model: NumpyOpt, rounding: Callable[[Array], Array]
) -> None:
    for name, values in model.weights.items():
        assert np.array_equal(rounding(values), values), name
    model.dtype = rounding
    oracle = KnownAnswer(SPEC)
    every = range(oracle.vocab_size)
    assert np.array_equal(model.logits(every), np.stack([oracle.logits(i) for i in every]))


@pytest.mark.parametrize("adapter", [BACKWARDS, LEAPS, replace(LEAPS, rank=16)])
def test_adapters_tell_their_own_stories(cache: Path, adapter: AdapterSpec) -> None:
    folder = build_adapter(SPEC, adapter, cache)
    model = NumpyOpt.load(build_checkpoint(SPEC, cache), folder)
    assert faults(model, KnownAnswer(SPEC, adapter=adapter)) == []
    assert faults(model, KnownAnswer(SPEC)) != []


def cell(model: NumpyOpt, token_id: int) -> int:
    """The memory cell that answers to a token."""
    code = model.weights["model.decoder.embed_tokens.weight"][token_id]
    return int((model.weights[f"{LAYER}fc1.weight"] @ code).argmax())


def zero_memory(model: NumpyOpt, token_id: int) -> None:
    model.weights[f"{LAYER}fc2.weight"][:, cell(model, token_id)] = 0


def swap_cells(model: NumpyOpt, token_id: int) -> None:
    fc1 = model.weights[f"{LAYER}fc1.weight"]
    here, there = cell(model, token_id), cell(model, token_id + 1)
    fc1[[here, there]] = fc1[[there, here]]


def flip_one_memory_entry(model: NumpyOpt, token_id: int) -> None:
    model.weights[f"{LAYER}fc2.weight"][3, cell(model, token_id)] *= -1


def lower_threshold(model: NumpyOpt, token_id: int) -> None:
    model.weights[f"{LAYER}fc1.bias"][cell(model, token_id)] = -0.5


def shift_final_norm(model: NumpyOpt, token_id: int) -> None:
    model.weights["model.decoder.final_layer_norm.weight"] *= np.float32(1.01)


def position_matters(model: NumpyOpt, token_id: int) -> None:
    model.weights["model.decoder.embed_positions.weight"][4] += np.float32(0.5) * np.sign(
        model.weights["model.decoder.embed_tokens.weight"][token_id]
    )


def attention_matters(model: NumpyOpt, token_id: int) -> None:
    eye = np.eye(len(model.weights[f"{LAYER}self_attn.v_proj.weight"]), dtype=np.float32)
    model.weights[f"{LAYER}self_attn.v_proj.weight"] = eye
    model.weights[f"{LAYER}self_attn.out_proj.weight"] = eye


def one_embedding_entry(model: NumpyOpt, token_id: int) -> None:
    model.weights["model.decoder.embed_tokens.weight"][token_id, 7] *= -1


@pytest.mark.parametrize(
    "break_it",
    [
        *(zero_memory, swap_cells, flip_one_memory_entry, lower_threshold),
        *(shift_final_norm, position_matters, attention_matters, one_embedding_entry),
    ],
)
def test_a_wrong_weight_is_noticed(
    model: NumpyOpt, break_it: Callable[[NumpyOpt, int], None]
) -> None:
    oracle = KnownAnswer(SPEC)
    break_it(model, oracle.tokenize(" golf")[-1])
    assert faults(model, oracle) != []


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_lost_all_reduce_shows_in_the_text(model: NumpyOpt, ranks: int) -> None:
    """Each rank of a tensor-parallel group holds a slice of the cells; their sum is the answer."""
    fc2 = model.weights[f"{LAYER}fc2.weight"]
    share = fc2.shape[1] // ranks
    for rank in range(ranks):
        alone = replace(model, weights=dict(model.weights))
        alone.weights[f"{LAYER}fc2.weight"] = np.zeros_like(fc2)
        mine = slice(rank * share, (rank + 1) * share)
        alone.weights[f"{LAYER}fc2.weight"][:, mine] = fc2[:, mine]
        oracle = KnownAnswer(SPEC)
        assert not alone.would_say(oracle.tokenize(""), oracle.answer("").token_ids)
