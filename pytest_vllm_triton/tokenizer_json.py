"""tokenizer.json, written by hand: the library's own writer differs between versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _byte_letters() -> tuple[str, ...]:
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in own else chr(next(others)) for byte in range(256))


#: The printable letter that byte-level BPE (GPT-2, OPT) uses for each of the 256 bytes.
BYTE_LETTERS = _byte_letters()


def tokenizer_json(
    special_tokens: Sequence[str],
    *,
    pre_tokenizer: Mapping[str, Any],
    post_processor: Mapping[str, Any] | None,
    decoder: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of the file.

    Args:
        special_tokens: those with the ids from 0 on.
        pre_tokenizer, post_processor, decoder, model: as the file has them.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(special_tokens)
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def bpe_model(
    vocabulary: Mapping[str, int], merges: Sequence[object], **options: Any
) -> dict[str, Any]:
    """The model of a byte-level BPE tokenizer: ids by token, and merges by rank.

    Args:
        merges: each a text with a space between both sides, or a list of both.
        options: further fields of the model.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        **options,
        "vocab": vocabulary,
        "merges": merges,
    }
