"""The tokenizer of a known-answer checkpoint: byte-level BPE that knows the story's words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from pytest_vllm_triton.tokenizer_json import BYTE_LETTERS, bpe_model, tokenizer_json

from ._spec import KnownAnswerSpec, is_word

# Ids as in OPT, with a BOS of its own so that BOS and EOS can be told apart.
BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")

_BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, BPE merges by rank, and the story as token ids (without EOS)."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    story_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in decoded text; none for a special token."""
        if token_id < len(SPECIAL_TOKENS):
            return b""
        return bytes(_BYTE_OF_LETTER[letter] for letter in self.tokens[token_id])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The Hugging Face tokenizer that the checkpoint ships."""
        return Tokenizer.from_str(self.tokenizer_json())

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json."""
        bos = {"SpecialToken": {"id": SPECIAL_TOKENS[BOS], "type_id": 0}}
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": True,
        }
        described = tokenizer_json(
            SPECIAL_TOKENS,
            pre_tokenizer=byte_level,
            post_processor={
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    bos,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 0}},
                ],
                "special_tokens": {
                    SPECIAL_TOKENS[BOS]: {
                        "id": SPECIAL_TOKENS[BOS],
                        "ids": [BOS],
                        "tokens": [SPECIAL_TOKENS[BOS]],
                    }
                },
            },
            decoder=byte_level,
            model=bpe_model(
                {token: i for i, token in enumerate(self.tokens)},
                [f"{left} {right}" for left, right in self.merges],
            ),
        )
        return json.dumps(described, ensure_ascii=False, indent=1)


def build_vocabulary(spec: KnownAnswerSpec) -> Vocabulary:
    """Special tokens, the 256 bytes, and for every word the chain of prefixes that BPE merges."""
    ids = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *BYTE_LETTERS))}
    merges: list[tuple[str, str]] = []
    story_ids: list[int] = []
    for piece in spec.story:
        letters = [BYTE_LETTERS[byte] for byte in piece.encode()]
        if not is_word(piece):
            story_ids.extend(ids[letter] for letter in letters)
            continue
        prefix = letters[0]
        for letter in letters[1:]:
            if prefix + letter not in ids:
                merges.append((prefix, letter))
                ids[prefix + letter] = len(ids)
            prefix += letter
        story_ids.append(ids[prefix])

    vocabulary = Vocabulary(tuple(ids), tuple(merges), tuple(story_ids))
    _require_walkable(spec, vocabulary)
    return vocabulary


def _require_walkable(spec: KnownAnswerSpec, vocabulary: Vocabulary) -> None:
    story_ids = vocabulary.story_ids
    if len(story_ids) < 6:
        raise ValueError(f"a story needs at least 6 tokens, this one has {len(story_ids)}")
    twice = sorted({i for i in story_ids if story_ids.count(i) > 1})
    if twice:
        names = ", ".join(repr(vocabulary.token_bytes(i)) for i in twice)
        raise ValueError(
            f"every token of a story has one successor, but {names} occurs more than once: "
            "give each word once, and spell at most one piece with any one byte"
        )
    read_back = vocabulary.tokenizer.encode("".join(spec.story), add_special_tokens=False).ids
    if tuple(read_back) != story_ids:
        raise ValueError("the story's text does not tokenize to the story's tokens")
