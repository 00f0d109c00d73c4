"""A tiny BERT encoder with random weights, and what it embeds, computed without any framework.

Two layers and 64 dimensions: vLLM loads it as an embedding model, and NumPy computes the same
vectors from the same weights in float64. Every lower-case letter is a token, so token counts need
no tokenizer either.
"""

from __future__ import annotations

import json
import math
import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_vllm_triton.tokenizer_json import tokenizer_json

Floats = npt.NDArray[np.float64]

HIDDEN = 64
# vLLM on CPUs has attention for heads of 32, 64, 80 … dimensions.
HEADS = 2
LAYERS = 2
_INNER = 128
_POSITIONS = 256
_EPSILON = 1e-12
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UNK, _CLS, _SEP = 1, 2, 3
# Lengths to which a client may shorten a vector.
DIMENSIONS = (8, 32)


@dataclass(frozen=True)
class TinyEncoder:
    """One encoder; equal seeds give equal weights.

    The sentence vector is the mean of the last layer's token vectors, scaled to length 1.
    """

    seed: int = 0

    @property
    def vocabulary(self) -> dict[str, int]:
        letters = string.ascii_lowercase
        tokens = [*_SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
        return {token: index for index, token in enumerate(tokens)}

    def tokenize(self, text: str) -> list[int]:
        """Token ids of the words, with [CLS] and [SEP].

        As WordPiece has it, a word with anything but lower-case letters is one [UNK].
        """
        inner = [token for word in text.split() for token in self._pieces(word)]
        return [_CLS, *inner, _SEP]

    def _pieces(self, word: str) -> list[int]:
        ids = self.vocabulary
        pieces = [word[0], *(f"##{letter}" for letter in word[1:])]
        return [ids[piece] for piece in pieces] if ids.keys() >= set(pieces) else [_UNK]

    def embed(self, token_ids: list[int], dimensions: int = HIDDEN) -> Floats:
        """The unit vector of these tokens, shape [dimensions]."""
        w = self.weights
        x = (
            w["embeddings.word_embeddings.weight"][token_ids]
            + w["embeddings.position_embeddings.weight"][: len(token_ids)]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for index in range(LAYERS):
            layer = f"encoder.layer.{index}"
            attended = self._attention(x, f"{layer}.attention.self")
            attended = self._linear(attended, f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = _gelu(self._linear(x, f"{layer}.intermediate.dense"))
            inner = self._linear(inner, f"{layer}.output.dense")
            x = self._norm(x + inner, f"{layer}.output.LayerNorm")
        mean: Floats = x.mean(axis=0)[:dimensions]
        unit: Floats = mean / np.linalg.norm(mean)
        return unit

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return out

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
        out: Floats = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return out

    def _attention(self, x: Floats, name: str) -> Floats:
        def heads(part: str) -> Floats:
            split = self._linear(x, f"{name}.{part}").reshape(len(x), HEADS, HIDDEN // HEADS)
            out: Floats = split.transpose(1, 0, 2)
            return out

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(HIDDEN // HEADS)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ value
        out: Floats = mixed.transpose(1, 0, 2).reshape(len(x), HIDDEN)
        return out

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """Hugging Face BERT tensors by name; every value is exact in float32."""
        made: dict[str, Floats] = {}

        def tensor(name: str, *shape: int, scale: float = 0.3, base: float = 0.0) -> None:
            # Philox's raw integers are the same in every NumPy.
            key = np.array([self.seed, len(made)], dtype=np.uint64)
            raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
            uniform = (raw >> 40).astype(np.float64) / (1 << 24) * 2 - 1
            values = (base + scale * uniform).astype(np.float32)
            made[name] = values.astype(np.float64).reshape(shape)

        def linear(name: str, out: int, inner: int) -> None:
            tensor(f"{name}.weight", out, inner)
            tensor(f"{name}.bias", out)

        def norm(name: str) -> None:
            tensor(f"{name}.weight", HIDDEN, base=1.0)
            tensor(f"{name}.bias", HIDDEN)

        tensor("embeddings.word_embeddings.weight", len(self.vocabulary), HIDDEN, scale=1.0)
        tensor("embeddings.position_embeddings.weight", _POSITIONS, HIDDEN)
        tensor("embeddings.token_type_embeddings.weight", 2, HIDDEN)
        norm("embeddings.LayerNorm")
        for index in range(LAYERS):
            layer = f"encoder.layer.{index}"
            for part in ("query", "key", "value"):
                linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
            linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
            norm(f"{layer}.attention.output.LayerNorm")
            linear(f"{layer}.intermediate.dense", _INNER, HIDDEN)
            linear(f"{layer}.output.dense", HIDDEN, _INNER)
            norm(f"{layer}.output.LayerNorm")
        return made

    def write(self, folder: Path) -> Path:
        """Write the checkpoint in sentence-transformers' layout; the folder."""
        from safetensors.numpy import save_file

        (folder / "1_Pooling").mkdir(parents=True)
        files: dict[str, Any] = {
            "config.json": self._config(),
            "tokenizer.json": self._tokenizer(),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": _POSITIONS,
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "mask_token": "[MASK]",
            },
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_MODULES}.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_MODULES}.Normalize"},
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": HIDDEN,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": True,
            },
            "sentence_bert_config.json": {"max_seq_length": _POSITIONS, "do_lower_case": False},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        tensors = {name: values.astype(np.float32) for name, values in self.weights.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def _config(self) -> dict[str, Any]:
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "torch_dtype": "float32",
            "vocab_size": len(self.vocabulary),
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": _INNER,
            "max_position_embeddings": _POSITIONS,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": _EPSILON,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "position_embedding_type": "absolute",
            "pad_token_id": 0,
            "matryoshka_dimensions": [*DIMENSIONS, HIDDEN],
        }

    def _tokenizer(self) -> dict[str, Any]:
        marks = {
            name: {"id": name, "ids": [index], "tokens": [name]}
            for name, index in (("[CLS]", _CLS), ("[SEP]", _SEP))
        }
        first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in marks)
        text = {"Sequence": {"id": "A", "type_id": 0}}
        other = {"Sequence": {"id": "B", "type_id": 0}}
        return tokenizer_json(
            _SPECIALS,
            pre_tokenizer={"type": "WhitespaceSplit"},
            post_processor={
                "type": "TemplateProcessing",
                "single": [first, text, last],
                "pair": [first, text, last, other, last],
                "special_tokens": marks,
            },
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
            model={
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 200,
                "vocab": self.vocabulary,
            },
        )


_MODULES = "sentence_transformers.models"


def _gelu(x: Floats) -> Floats:
    erf = np.vectorize(math.erf)
    out: Floats = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return out
