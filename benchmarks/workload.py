"""What every system is asked, and how to tell that it answered all of it.

Standard library only: the client processes and the runtime's own Python import it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPT_WORDS = 16


@dataclass(frozen=True)
class Workload:
    """Greedy requests of distinct short prompts and a fixed number of new tokens.

    Attributes:
        style: "story": the known-answer model, whose text is known exactly. "words": a generated
            random-weight checkpoint, whose every output token is one word with its leading space.
        max_tokens: new tokens of each request; EOS is ignored.
        fragments: with "story", the text that each of the tokens adds.
    """

    style: Literal["story", "words"]
    max_tokens: int
    fragments: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Workload:
        return cls(value["style"], value["max_tokens"], tuple(value["fragments"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sampling(self) -> dict[str, Any]:
        """vLLM's sampling parameters."""
        return {"temperature": 0, "max_tokens": self.max_tokens, "ignore_eos": True}

    def prompt(self, number: int) -> str:
        """The prompt of this number; different numbers below 17,000 give different prompts."""
        if self.style == "story":
            return f"Tell story number {number}:"
        words = []
        for position in range(PROMPT_WORDS):
            value = number if position == 0 else number * 31 + position * 7919
            words.append("".join(LETTERS[value // 26**digit % 26] for digit in range(3)))
        return " " + " ".join(words)

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(fragment) for fragment in self.fragments))

    def tokens(self, text: str) -> int:
        """How many tokens the first ``len(text)`` characters of an answer stand for."""
        if self.style == "words":
            return text.count(" ")
        return bisect_right(self._ends, len(text))

    def problem(self, text: str) -> str | None:
        """What is wrong with an answer, None if all its tokens are there."""
        if self.style == "words":
            found = self.tokens(text)
            return None if found == self.max_tokens else f"{found} tokens in {text[:200]!r}"
        return None if text == "".join(self.fragments) else f"wrong text {text[:300]!r}"
