"""From what a client noted of each request to the figures of one run. Standard library only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workload import Workload

SHOWN_ERRORS = 5


@dataclass
class Request:
    """One request as its client saw it; times in seconds of the host's monotonic clock.

    Attributes:
        texts: (arrival, text) of every piece of the answer.
    """

    sent: float
    ended: float
    texts: Sequence[tuple[float, str]]
    error: str | None = None


@dataclass
class Figures:
    """One run of one system at one level, or one client's part of it.

    Attributes:
        tokens: of all complete answers.
        started, ended: first request sent, last answer complete; host's monotonic clock, seconds.
        ttft: seconds from sending a request to the first text, one per request.
        tpot: seconds per token after the first piece, one per request.
        pieces: responses with text.
        cpu: CPU seconds that the client took.
        errors: what went wrong -> how often.
    """

    tokens: int = 0
    started: float = math.inf
    ended: float = -math.inf
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    pieces: int = 0
    cpu: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.ended - self.started) if self.tokens else 0.0

    @classmethod
    def merged(cls, parts: Iterable[Figures]) -> Figures:
        whole = cls()
        errors: Counter[str] = Counter()
        for part in parts:
            whole.tokens += part.tokens
            whole.started = min(whole.started, part.started)
            whole.ended = max(whole.ended, part.ended)
            whole.ttft += part.ttft
            whole.tpot += part.tpot
            whole.pieces += part.pieces
            whole.cpu += part.cpu
            errors.update(part.errors)
        whole.errors = dict(errors)
        return whole

    @classmethod
    def of(cls, requests: Iterable[Request], workload: Workload, cpu: float) -> Figures:
        """Check every answer and take its times; a wrong one counts as an error, not as tokens."""
        figures = cls(cpu=cpu)
        errors: Counter[str] = Counter()
        for request in requests:
            figures.started = min(figures.started, request.sent)
            figures.ended = max(figures.ended, request.ended)
            pieces = [(at, text) for at, text in request.texts if text]
            problem = request.error or workload.problem("".join(text for _, text in pieces))
            if problem is not None:
                errors[problem] += 1
                continue
            figures.tokens += workload.max_tokens
            figures.pieces += len(pieces)
            figures.ttft.append(pieces[0][0] - request.sent)
            later = workload.max_tokens - workload.tokens(pieces[0][1])
            if later > 0:
                figures.tpot.append((pieces[-1][0] - pieces[0][0]) / later)
        figures.errors = dict(errors.most_common(SHOWN_ERRORS))
        return figures

    def to_json(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Figures:
        return cls(**value)


def quantile(values: Sequence[float], share: float) -> float:
    """The value at this share of the sorted values (linear interpolation); nan without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)
