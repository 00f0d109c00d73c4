"""What tells one known-answer checkpoint from another."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass

# Part of the cache key: raise it whenever an unchanged spec gives other bytes than before.
FORMAT_VERSION = 3


def _words(text: str) -> tuple[str, ...]:
    return tuple(f" {word}" for word in text.split())


# Written so that it hurts: every word is one token, but an emoji and an accented letter are spelled
# byte by byte (a stream is cut inside characters), and a line break, a quote and a backslash show
# broken JSON or SSE escaping.
DEFAULT_STORY: tuple[str, ...] = (
    *_words("alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike"),
    " 😀é",
    *_words("november oscar papa quebec romeo sierra tango uniform victor whiskey xray yankee"),
    '\n"\\',
    " zulu",
)

# A second story, in the same form, for the second of two models.
OTHER_STORY: tuple[str, ...] = (
    *_words("mercury venus earth mars jupiter saturn uranus neptune"),
    " 🪐ü",
    *_words("pluto ceres eris haumea makemake sedna"),
)

_WORD = re.compile(r" [A-Za-z]+")


def is_word(piece: str) -> bool:
    """Whether `piece` is one token (a space and ASCII letters); any other is spelled in bytes."""
    return _WORD.fullmatch(piece) is not None


@dataclass(frozen=True)
class KnownAnswerSpec:
    """One known-answer checkpoint; equal specs give equal bytes.

    Attributes:
        story: the pieces of the text the model tells, each with its leading space. A space followed
            by ASCII letters is one token; every other piece is spelled in bytes, one token each. No
            token may occur twice, because each token has one successor.
        margin: distance in logits between the right next token and the second best; a multiple of
            0.25, so that every logit is exact even in bfloat16. With the default, 16 tokens sampled
            at temperature 0.5 are the story (all but one time in 300 000), and at temperature 2,
            the highest that vLLM takes, they are not (all but one time in 70 000).
        seed: chooses the tokens' codes and the order of the memory cells: other weights, same text.
        layers: decoder layers, all but the first of which change nothing. A pipeline wants one for
            each of its stages.
    """

    story: tuple[str, ...] = DEFAULT_STORY
    margin: float = 8.0
    seed: int = 0
    layers: int = 1

    def __post_init__(self) -> None:
        if not (0.25 <= self.margin <= 32.0) or not math.isclose(
            self.margin * 4, round(self.margin * 4), abs_tol=1e-9
        ):
            raise ValueError(
                f"margin must be a multiple of 0.25 from 0.25 to 32, not {self.margin!r}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be an unsigned 64-bit integer, not {self.seed!r}")
        if self.layers < 1:
            raise ValueError(f"there is at least one layer, not {self.layers!r}")
        if not all(self.story):
            raise ValueError("a story has no empty pieces")

    @property
    def key(self) -> str:
        """Content key: 16 hexadecimal digits, equal for equal specs and formats only."""
        described = json.dumps(
            {"format": FORMAT_VERSION, **asdict(self), "margin": float(self.margin)}, sort_keys=True
        )
        return hashlib.sha256(described.encode()).hexdigest()[:16]
