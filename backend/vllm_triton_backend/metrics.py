"""vLLM's metrics through Triton's custom-metrics API.

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
from typing import Any

from vllm_triton_backend.metric_families import (
    COUNTER,
    FINISHED,
    FINISHED_REASONS,
    HISTOGRAM,
    Family,
    families,
)
from vllm_triton_backend.shared_references import SharedReference
from vllm_triton_backend.stats import MOST_OBSERVATIONS, Stats, StatsAccumulator

_FLUSH_SECONDS = 0.2
# On a busy host a round trip can take 10 ms, and the server's exit timeout runs.
_LAST_FLUSH_SECONDS = 1.0
# While requests run: 200 round trips per flush are about 10 ms, a twentieth of a thread.
_OBSERVATIONS_PER_FLUSH = 200
# How long a load and an unload wait for the metrics.
_PATIENCE_SECONDS = 5.0


class _TritonMetrics:
    """Triton's objects.

    Attributes:
        by_attribute: the metrics without an extra label, by attribute of Stats.
        by_reason: those of the sequences that ended.
    """

    def __init__(self, pb_utils: Any, labels: Mapping[str, str], entries: Sequence[Family]) -> None:
        self._make_family = pb_utils.MetricFamily
        self._families: list[Any] = []
        self.by_attribute: dict[str, Any] = {}
        self.by_reason: dict[str, Any] = {}
        for entry in entries:
            family = self._family(entry.name, entry.description, entry.kind)
            options = {"buckets": list(entry.buckets)} if entry.kind == HISTOGRAM else {}
            self.by_attribute[entry.attribute] = family.Metric(labels=dict(labels), **options)
        name, description, label = FINISHED
        family = self._family(name, description, COUNTER)
        for reason in FINISHED_REASONS:
            self.by_reason[reason] = family.Metric(labels={**labels, label: reason})

    def _family(self, name: str, description: str, kind: str) -> Any:
        make = self._make_family
        family = make(name=name, description=description, kind=getattr(make, kind))
        self._families.append(family)
        return family

    def observe(
        self, observations: Mapping[str, array[float]], limit: int, seconds: float
    ) -> dict[str, array[float]]:
        """Send `limit` of a kind, and for `seconds` at most; returns what is left."""
        left: dict[str, array[float]] = {}
        deadline = time.monotonic() + seconds
        # The short ones first: one latency per token must not keep those per request back.
        for attribute, values in sorted(observations.items(), key=lambda item: len(item[1])):
            observe = self.by_attribute[attribute].observe
            count, done = min(limit, len(values)), 0
            while done < count and time.monotonic() <= deadline:
                observe(values[done])
                done += 1
            if done < len(values):
                left[attribute] = values[done:]
        return left

    def free(self) -> None:
        """Metrics before their families: the stub crashes when one outlives its shared memory."""
        self.by_attribute.clear()
        self.by_reason.clear()
        self._families.clear()


#: Triton's objects that another process still uses. They are kept here because nothing refers to a
#: closed exporter, and Python would free them with it.
_NEVER_FREED: list[_TritonMetrics] = []


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
        entries = families(max_model_len)
        self._accumulator = StatsAccumulator(entries)
        self._is_idle = is_idle
        self._reference = reference
        self._sent_gauges: dict[str, float] = {}
        self._created = threading.Event()
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(pb_utils, labels, entries), name="vllm-metrics", daemon=True
        )
        self._thread.start()
        self._created.wait(_PATIENCE_SECONDS)
        if self._failure is not None:
            raise self._failure

    def record(self, stats: Stats) -> None:
        """Take in one engine step; cheap, called on the event loop."""
        self._accumulator.add(stats)

    def close(self) -> None:
        """Send the rest and let go of Triton's objects."""
        self._stopped.set()
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self, pb_utils: Any, labels: Mapping[str, str], entries: Sequence[Family]) -> None:
        try:
            with self._reference.acquiring():
                metrics = _TritonMetrics(pb_utils, labels, entries)
        except Exception as error:
            self._failure = error
            return
        finally:
            self._created.set()
        self._send(metrics)
        with self._reference.releasing() as last:
            if last:
                # Before `finalize` returns.
                metrics.free()
            else:
                # The last process frees them. This one must not, and exits without a teardown.
                _NEVER_FREED.append(metrics)

    def _send(self, metrics: _TritonMetrics) -> None:
        """Until `close`."""
        while not self._stopped.wait(_FLUSH_SECONDS):
            with contextlib.suppress(Exception):
                # Idle means that nobody pays for the round trips.
                limit = MOST_OBSERVATIONS if self._is_idle() else _OBSERVATIONS_PER_FLUSH
                self._flush(metrics, limit, _FLUSH_SECONDS)
        with contextlib.suppress(Exception):
            self._flush(metrics, MOST_OBSERVATIONS, _LAST_FLUSH_SECONDS)
        for attribute, value in self._sent_gauges.items():
            # Instances of one model share the gauge: take away only our part.
            with contextlib.suppress(Exception):
                if value:
                    metrics.by_attribute[attribute].increment(-value)

    def _flush(self, metrics: _TritonMetrics, limit: int, seconds: float) -> None:
        """Send what is pending; of the latencies, `limit` of a kind and for `seconds` at most."""
        idle = self._is_idle()
        pending = self._accumulator.take()
        for attribute, count in pending.counts.items():
            metrics.by_attribute[attribute].increment(count)
        for reason, ended in pending.finished.items():
            metrics.by_reason[reason].increment(ended)
        for attribute, value in pending.gauges.items():
            now = 0.0 if idle else value
            change = now - self._sent_gauges.get(attribute, 0.0)
            if change:
                metrics.by_attribute[attribute].increment(change)
                self._sent_gauges[attribute] = now
        self._accumulator.put_back(metrics.observe(pending.observations, limit, seconds))
