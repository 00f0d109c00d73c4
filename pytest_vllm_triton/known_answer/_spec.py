"""What tells one known-answer checkpoint from another."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass

# Raise it whenever the bytes of a checkpoint change for an unchanged spec: it is part of the cache key.
FORMAT_VERSION = 1

# The story is written so that it hurts: every word is one token, except for an emoji and an accented
# letter spelled byte by byte (streams cut inside characters) and a line break, quote and backslash
# (broken JSON or SSE escaping shows).
DEFAULT_STORY: tuple[str, ...] = (
    *(f" {w}" for w in "alpha bravo charlie delta echo foxtrot golf hotel india juliett".split()),
    *(f" {w}" for w in "kilo lima mike".split()),
    " 😀é",
    *(f" {w}" for w in "november oscar papa quebec romeo sierra tango uniform".split()),
    *(f" {w}" for w in "victor whiskey xray yankee".split()),
    '\n"\\',
    " zulu",
)

# A second story, in the same form, for the second of two models.
OTHER_STORY: tuple[str, ...] = (
    *(f" {w}" for w in "mercury venus earth mars jupiter saturn uranus neptune".split()),
    " 🪐ü",
    *(f" {w}" for w in "pluto ceres eris haumea makemake sedna".split()),
)

_WORD = re.compile(r" [A-Za-z]+")


def is_word(piece: str) -> bool:
    """Whether `piece` is one token (a space and ASCII letters); any other is spelled in bytes."""
    return _WORD.fullmatch(piece) is not None


@dataclass(frozen=True)
class KnownAnswerSpec:
    """One known-answer checkpoint; equal specs give equal bytes.

    story: the pieces of the text the model tells, each with its leading space. A space followed by
        ASCII letters is one token; every other piece is spelled in bytes, one token each. No token
        may occur twice, because each token has one successor.
    margin: distance in logits between the right next token and the second best; a multiple of 0.25,
        so that every logit is exact even in bfloat16.
    seed: chooses the codes of the tokens and the order of the memory cells: other weights, same text.
    """

    story: tuple[str, ...] = DEFAULT_STORY
    margin: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.25 <= self.margin <= 32.0) or not math.isclose(
            self.margin * 4, round(self.margin * 4), abs_tol=1e-9
        ):
            raise ValueError(
                f"margin must be a multiple of 0.25 from 0.25 to 32, not {self.margin!r}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be an unsigned 64-bit integer, not {self.seed!r}")
        if not all(self.story):
            raise ValueError("a story has no empty pieces")

    @property
    def key(self) -> str:
        """Content key: 16 hexadecimal digits, equal for equal specs and formats only."""
        described = json.dumps(
            {"format": FORMAT_VERSION, **asdict(self), "margin": float(self.margin)}, sort_keys=True
        )
        return hashlib.sha256(described.encode()).hexdigest()[:16]
