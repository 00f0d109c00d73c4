"""LoRA adapters that tell another known story with the same checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._spec import FORMAT_VERSION, KnownAnswerSpec, is_word
from ._vocabulary import EOS, Vocabulary
from ._weights import Codebook, Successors, build_target, exact_float16

_MODULE = "base_model.model.model.decoder.layers.0.fc2"


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter that changes some of the story's steps; equal specs give equal bytes.

    Attributes:
        links: (word, next word) pairs, words as in the story with their leading space; a next word
            of None ends the story. Every changed step takes one rank.
        rank: the adapter's LoRA rank, at least the number of links (the default); the rest is
            padding, for checks of what a server does with a rank that it does not allow.
    """

    links: tuple[tuple[str, str | None], ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        words = [word for word, _ in self.links]
        if not words or len(set(words)) < len(words):
            raise ValueError("an adapter changes at least one step, and each step once")
        if self.rank is not None and self.rank < len(words):
            raise ValueError(f"{len(words)} links need a rank of {len(words)}, not {self.rank}")

    @property
    def effective_rank(self) -> int:
        return len(self.links) if self.rank is None else self.rank

    def key(self, base: KnownAnswerSpec) -> str:
        """Content key for this adapter of `base`'s checkpoint: 16 hexadecimal digits."""
        described = json.dumps([FORMAT_VERSION, base.key, self.links, self.effective_rank])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def link_ids(self, vocabulary: Vocabulary) -> dict[int, int]:
        """The changed steps in token ids."""
        return {
            _word_id(word, vocabulary): EOS
            if following is None
            else _word_id(following, vocabulary)
            for word, following in self.links
        }


def _chain(text: str, *, ends: bool) -> tuple[tuple[str, str | None], ...]:
    words = [f" {word}" for word in text.split()]
    return tuple(zip(words, [*words[1:], None] if ends else words[1:], strict=False))


# Two adapters of the default story: after " alpha" each of the three models says something else.
BACKWARDS = AdapterSpec(_chain("alpha zulu yankee xray whiskey victor uniform tango", ends=True))
LEAPS = AdapterSpec(_chain("alpha charlie echo golf india kilo november papa", ends=False))


def _word_id(word: str, vocabulary: Vocabulary) -> int:
    ids = vocabulary.tokenizer.encode(word, add_special_tokens=False).ids
    if not is_word(word) or len(ids) != 1 or ids[0] not in vocabulary.story_ids:
        raise ValueError(f"{word!r} is not a one-token word of the story")
    return int(ids[0])


def adapter_weights(
    adapter: AdapterSpec,
    *,
    vocabulary: Vocabulary,
    codebook: Codebook,
    base: Successors,
    changed: Successors,
) -> dict[str, npt.NDArray[np.float16]]:
    """PEFT tensors by name: A reads the cells of the changed words, B swaps their targets."""
    hidden = codebook.token_codes.shape[1]
    lora_a = np.zeros((adapter.effective_rank, codebook.cell_count))
    lora_b = np.zeros((hidden, adapter.effective_rank))
    for row, token_id in enumerate(adapter.link_ids(vocabulary)):
        lora_a[row, codebook.cells[token_id]] = 1
        _, told = build_target(base, codebook, token_id)
        _, wanted = build_target(changed, codebook, token_id)
        lora_b[:, row] = wanted - told
    tensors = {f"{_MODULE}.lora_A.weight": lora_a, f"{_MODULE}.lora_B.weight": lora_b}
    return {name: exact_float16(name, values) for name, values in tensors.items()}


def adapter_config(adapter: AdapterSpec) -> dict[str, object]:
    """adapter_config.json as PEFT writes it, for alpha = rank, so that nothing is rescaled."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.effective_rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": adapter.effective_rank,
        "target_modules": ["fc2"],
        "use_dora": False,
        "use_rslora": False,
    }
