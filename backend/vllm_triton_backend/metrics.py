"""vLLM's metrics through Triton's custom-metrics API.

Names, descriptions and buckets of the first eight families follow upstream's metrics.py; the rest
follow vllm/v1/metrics/loggers.py. Labels: model, version (and finished_reason).

Every call to Triton's API is a round trip to the server (about 50 µs), and vLLM has one latency
per token. So counters and gauges are summed up and sent a few times a second, and latencies per
token are sent at a bounded rate while requests run; what is left follows when the engine is idle.
"""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_triton_backend.shared_references import SharedReference

_FLUSH_SECONDS = 0.2
# On a busy host a round trip can take 10 ms, and the server's exit timeout runs.
_LAST_FLUSH_SECONDS = 1.0
# While requests run: 200 round trips per flush are about 10 ms, a twentieth of a thread.
_OBSERVATIONS_PER_FLUSH = 200
_BACKLOG = 1_000_000
# How long a load and an unload wait for the metrics.
_PATIENCE_SECONDS = 5.0

COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"


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


_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
_TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric family, and the attribute of Stats that it shows.

    `token_buckets`: the buckets of the histogram count tokens, up to the model's longest text.
    """

    name: str
    description: str
    kind: str
    attribute: str
    buckets: tuple[float, ...] = ()
    token_buckets: bool = False


#: All families without an extra label.
FAMILIES = (
    _Family(
        "vllm:prompt_tokens_total",
        "Number of prefill tokens processed.",
        COUNTER,
        "prompt_tokens",
    ),
    _Family(
        "vllm:generation_tokens_total",
        "Number of generation tokens processed.",
        COUNTER,
        "generation_tokens",
    ),
    _Family(
        "vllm:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        HISTOGRAM,
        "time_to_first_token",
        _TTFT_BUCKETS,
    ),
    _Family(
        "vllm:time_per_output_token_seconds",
        "Histogram of time per output token in seconds.",
        HISTOGRAM,
        "time_per_output_token",
        _TPOT_BUCKETS,
    ),
    _Family(
        "vllm:e2e_request_latency_seconds",
        "Histogram of end to end request latency in seconds.",
        HISTOGRAM,
        "e2e_latency",
        (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    ),
    _Family(
        "vllm:request_prompt_tokens",
        "Number of prefill tokens processed.",
        HISTOGRAM,
        "request_prompt_tokens",
        token_buckets=True,
    ),
    _Family(
        "vllm:request_generation_tokens",
        "Number of generation tokens processed.",
        HISTOGRAM,
        "request_generation_tokens",
        token_buckets=True,
    ),
    _Family(
        "vllm:request_params_n",
        "Histogram of the n request parameter.",
        HISTOGRAM,
        "n_params",
        (1.0, 2.0, 5.0, 10.0, 20.0),
    ),
    _Family(
        "vllm:num_requests_running",
        "Number of requests in the engine's running batch.",
        GAUGE,
        "running",
    ),
    _Family(
        "vllm:num_requests_waiting",
        "Number of requests that wait for a place in the batch.",
        GAUGE,
        "waiting",
    ),
    _Family(
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache that is in use; 1 is all of it.",
        GAUGE,
        "kv_cache_usage",
    ),
    _Family(
        "vllm:num_preemptions_total",
        "Number of times a running request was put back to waiting.",
        COUNTER,
        "preemptions",
    ),
    _Family(
        "vllm:prefix_cache_queries_total",
        "Number of prompt tokens looked up in the prefix cache.",
        COUNTER,
        "prefix_queries",
    ),
    _Family(
        "vllm:prefix_cache_hits_total",
        "Number of prompt tokens found in the prefix cache.",
        COUNTER,
        "prefix_hits",
    ),
)


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to and including values of at most `largest`."""
    buckets: list[float] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            if power * factor > largest:
                return tuple(buckets)
            buckets.append(float(power * factor))
        power *= 10


def families(max_model_len: int) -> tuple[_Family, ...]:
    """FAMILIES as they are for a model of `max_model_len` tokens."""
    buckets = one_two_five(max_model_len)
    return tuple(
        replace(family, buckets=buckets) if family.token_buckets else family for family in FAMILIES
    )


_FINISHED = (
    "vllm:request_success_total",
    "Number of sequences that ended, by reason.",
    "finished_reason",
)
FINISHED_REASONS = ("stop", "length", "abort", "error")


#: Triton's objects that another process still uses: kept, as Python frees what nobody holds.
_NEVER_FREED: list[Any] = []


@dataclass(slots=True)
class _Pending:
    """Sums since the last flush; `observations` by attribute of Stats."""

    counts: dict[str, float] = field(default_factory=dict)
    observations: dict[str, array[float]] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)


class MetricsExporter:
    """Collects Stats from the event loop and sends them to Triton from a thread of its own.

    That thread makes, uses and frees all of Triton's objects: a round trip that never returns (seen
    of Triton 24.10 on a busy host) then holds up neither the load nor the unload of the model.

    Args:
        pb_utils: Triton's module.
        labels: {"model": name, "version": version}.
        max_model_len: see `families`.
        is_idle: whether no request is live; then the gauges are 0 whatever vLLM said last (it
            reports with engine steps, and an aborted request has none).
        reference: to the metrics of these labels, which other processes may have too.

    Raises:
        Exception: Triton's, when it is too old for histograms.
    """

    def __init__(
        self,
        pb_utils: Any,
        labels: Mapping[str, str],
        max_model_len: int,
        is_idle: Callable[[], bool],
        reference: SharedReference,
    ) -> None:
        self._reference = reference
        self._pb_utils = pb_utils
        self._labels = dict(labels)
        self._entries = families(max_model_len)
        self._kinds = {entry.attribute: entry.kind for entry in self._entries}
        self._is_idle = is_idle
        self._lock = threading.Lock()
        self._pending = _Pending()
        self._gauges: dict[str, float] = {}
        self._sent_gauges: dict[str, float] = {}
        self._families: list[Any] = []
        self._metrics: dict[str, Any] = {}
        self._finished: dict[str, Any] = {}
        self._created = threading.Event()
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-metrics", daemon=True)
        self._thread.start()
        self._created.wait(_PATIENCE_SECONDS)
        if self._failure is not None:
            raise self._failure

    def record(self, stats: Stats) -> None:
        """Take in one engine step; cheap, called on the event loop."""
        with self._lock:
            counts, observations = self._pending.counts, self._pending.observations
            for attribute, kind in self._kinds.items():
                value = getattr(stats, attribute)
                if not value and kind != GAUGE:
                    continue
                if kind == COUNTER:
                    counts[attribute] = counts.get(attribute, 0) + value
                elif kind == HISTOGRAM:
                    waiting = observations.setdefault(attribute, array("d"))
                    waiting.extend(value)
                    if len(waiting) > _BACKLOG:
                        del waiting[: len(waiting) - _BACKLOG]
                elif value is not None:
                    self._gauges[attribute] = value
            for reason in stats.finished:
                self._count_finished(reason)

    def _count_finished(self, reason: str) -> None:
        """One sequence ended; unknown reasons count as "error"."""
        key = reason if reason in FINISHED_REASONS else "error"
        finished = self._pending.finished
        finished[key] = finished.get(key, 0) + 1

    def close(self) -> None:
        """Send the rest and let go of Triton's objects."""
        self._stopped.set()
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self) -> None:
        try:
            with self._reference.acquiring():
                self._create()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._created.set()
        while not self._stopped.wait(_FLUSH_SECONDS):
            with contextlib.suppress(Exception):
                # Idle means that nobody pays for the round trips.
                idle = self._is_idle()
                self._flush(_BACKLOG if idle else _OBSERVATIONS_PER_FLUSH, _FLUSH_SECONDS)
        with contextlib.suppress(Exception):
            self._flush(_BACKLOG, _LAST_FLUSH_SECONDS)
            for attribute, value in self._sent_gauges.items():
                # Instances of one model share the gauge: take away only our part.
                if value:
                    self._metrics[attribute].increment(-value)
        with self._reference.releasing() as last:
            if not last:
                # The last process frees them. This one must not, and exits without a teardown.
                _NEVER_FREED.append((self._metrics, self._finished, self._families))
                return
            # They must die before `finalize` returns, metrics before their families: the stub
            # crashes when one outlives its shared memory.
            self._metrics.clear()
            self._finished.clear()
            self._families.clear()

    def _create(self) -> None:
        for entry in self._entries:
            family = self._family(entry.name, entry.description, entry.kind)
            options = {"buckets": list(entry.buckets)} if entry.kind == HISTOGRAM else {}
            self._metrics[entry.attribute] = family.Metric(labels=dict(self._labels), **options)
        name, description, label = _FINISHED
        family = self._family(name, description, COUNTER)
        for reason in FINISHED_REASONS:
            self._finished[reason] = family.Metric(labels={**self._labels, label: reason})

    def _family(self, name: str, description: str, kind: str) -> Any:
        maker = self._pb_utils.MetricFamily
        family = maker(name=name, description=description, kind=getattr(maker, kind))
        self._families.append(family)
        return family

    def _flush(self, limit: int, seconds: float) -> None:
        """Send what is pending; of the latencies, `limit` of a kind and for `seconds` at most."""
        idle = self._is_idle()
        with self._lock:
            pending, self._pending = self._pending, _Pending()
            gauges = dict.fromkeys(self._gauges, 0.0) if idle else dict(self._gauges)
        for attribute, count in pending.counts.items():
            self._metrics[attribute].increment(count)
        for reason, count in pending.finished.items():
            self._finished[reason].increment(count)
        for attribute, value in gauges.items():
            change = value - self._sent_gauges.get(attribute, 0.0)
            if change:
                self._metrics[attribute].increment(change)
                self._sent_gauges[attribute] = value
        left: dict[str, array[float]] = {}
        deadline = time.monotonic() + seconds
        # The short ones first: one latency per token must not keep those per request back.
        shortest_first = sorted(pending.observations.items(), key=lambda item: len(item[1]))
        for attribute, values in shortest_first:
            observe = self._metrics[attribute].observe
            done = 0
            for value in values:
                if done >= limit or time.monotonic() > deadline:
                    break
                observe(value)
                done += 1
            if done < len(values):
                left[attribute] = values[done:]
        if left:
            with self._lock:
                for attribute, values in left.items():
                    values.extend(self._pending.observations.get(attribute, ()))
                    self._pending.observations[attribute] = values
