"""vLLM's statistics, of one engine step and summed up over some."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_triton_backend.metric_families import (
    COUNTER,
    FINISHED_REASONS,
    GAUGE,
    HISTOGRAM,
    Family,
)

#: Of one family; older values are dropped.
MOST_OBSERVATIONS = 1_000_000


@dataclass(slots=True)
class Stats:
    """What one engine step adds. Latencies in seconds; counts are of this step alone.

    Sequences of a request with n > 1 count one by one, as in vLLM, except in `n_params`.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    time_to_first_token: Sequence[float] = ()
    time_per_output_token: Sequence[float] = ()
    e2e_latency: Sequence[float] = ()
    request_prompt_tokens: Sequence[int] = ()
    request_generation_tokens: Sequence[int] = ()
    n_params: Sequence[int] = ()
    finished: Sequence[str] = ()
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None


@dataclass(slots=True)
class PendingStats:
    """What several steps add, by attribute of Stats; `finished` is by reason."""

    counts: dict[str, float] = field(default_factory=dict)
    observations: dict[str, array[float]] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)


class StatsAccumulator:
    """Sums up statistics until they are taken; safe to use from any thread.

    Args:
        families: for which there are metrics; the rest of Stats is dropped.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        self._counters = _attributes(families, COUNTER)
        self._histograms = _attributes(families, HISTOGRAM)
        self._gauges = _attributes(families, GAUGE)
        self._lock = threading.Lock()
        self._pending = PendingStats()

    def add(self, stats: Stats) -> None:
        """Take in one engine step; cheap, called on the event loop."""
        with self._lock:
            pending = self._pending
            for attribute in self._counters:
                if count := getattr(stats, attribute):
                    pending.counts[attribute] = pending.counts.get(attribute, 0) + count
            for attribute in self._histograms:
                if values := getattr(stats, attribute):
                    waiting = pending.observations.setdefault(attribute, array("d"))
                    waiting.extend(values)
                    del waiting[:-MOST_OBSERVATIONS]
            for attribute in self._gauges:
                value = getattr(stats, attribute)
                if value is not None:
                    pending.gauges[attribute] = value
            for reason in stats.finished:
                known = reason if reason in FINISHED_REASONS else "error"
                pending.finished[known] = pending.finished.get(known, 0) + 1

    def take(self) -> PendingStats:
        """What came since the last call, and the gauges as they are."""
        with self._lock:
            taken = self._pending
            self._pending = PendingStats(gauges=dict(taken.gauges))
        return taken

    def put_back(self, observations: Mapping[str, array[float]]) -> None:
        """The rest of what was taken, before what has come meanwhile."""
        with self._lock:
            for attribute, values in observations.items():
                values.extend(self._pending.observations.get(attribute, ()))
                self._pending.observations[attribute] = values


class RankGauges:
    """What the ranks of a data-parallel engine said last, each of itself."""

    def __init__(self) -> None:
        self._latest: dict[int, Stats] = {}

    def of_all(self, engine_index: int, stats: Stats) -> Stats:
        """These statistics of one rank, with the gauges of all of them."""
        if stats.running is None:
            return stats
        self._latest[engine_index] = Stats(
            running=stats.running, waiting=stats.waiting, kv_cache_usage=stats.kv_cache_usage
        )
        ranks = self._latest.values()
        stats.running = sum(rank.running or 0 for rank in ranks)
        stats.waiting = sum(rank.waiting or 0 for rank in ranks)
        stats.kv_cache_usage = sum(rank.kv_cache_usage or 0.0 for rank in ranks) / len(ranks)
        return stats


def _attributes(families: Sequence[Family], kind: str) -> tuple[str, ...]:
    return tuple(family.attribute for family in families if family.kind == kind)
