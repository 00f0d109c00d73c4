"""What Triton is told of vLLM's statistics, and what happens to its objects."""

from __future__ import annotations

import gc
import uuid
import weakref
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_triton_backend import metrics
from vllm_triton_backend.metric_families import FINISHED_REASONS, families
from vllm_triton_backend.metrics import MetricsExporter
from vllm_triton_backend.shared_references import SharedReference
from vllm_triton_backend.stats import Stats, StatsAccumulator
from waiting import eventually

LABELS = {"model": "m", "version": "1"}


class FakeTriton:
    """Triton's metrics, as one server has them: of a name and labels there is one value."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.observed: dict[str, list[float]] = {}
        #: A family whose round trips fail.
        self.refuses = ""
        #: Metrics and families as they are freed.
        self.freed: list[str] = []
        triton = self

        class Metric:
            def __init__(self, family: str, labels: dict[str, str]) -> None:
                # Not the family itself, which this must not keep.
                self._key = (family, *labels.values())
                weakref.finalize(self, triton.freed.append, "metric")

            def increment(self, value: float) -> None:
                if self._key[0] == triton.refuses:
                    raise RuntimeError("the server does not answer")
                triton.values[self._key] = triton.values.get(self._key, 0.0) + value

            def observe(self, value: float) -> None:
                triton.observed.setdefault(self._key[0], []).append(value)

        class MetricFamily:
            COUNTER = GAUGE = HISTOGRAM = 0

            def __init__(self, name: str, description: str, kind: int) -> None:
                self._name = name
                weakref.finalize(self, triton.freed.append, "family")

            def Metric(self, labels: dict[str, str], buckets: Any = ()) -> Metric:
                return Metric(self._name, labels)

        self.module = SimpleNamespace(MetricFamily=MetricFamily)


@pytest.fixture
def name() -> str:
    return f"\0test-metrics-{uuid.uuid4().hex}"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is never freed, which ends with the test here."""
    kept: list[Any] = []
    monkeypatch.setattr(metrics, "_NEVER_FREED", kept)
    yield kept
    kept.clear()


def exporter(triton: FakeTriton, name: str, idle: bool = False) -> MetricsExporter:
    return MetricsExporter(triton.module, LABELS, 100, lambda: idle, SharedReference(name))


def test_statistics_are_sent(name: str) -> None:
    triton = FakeTriton()
    sends = exporter(triton, name)
    for running in (5, 3):
        sends.record(Stats(prompt_tokens=2, running=running, n_params=[1, 2], finished=["stop"]))
    sends.record(Stats(finished=["?"]))

    key = ("vllm:num_requests_running", "m", "1")
    assert eventually(lambda: triton.values.get(key) == 3)
    sends.close()

    assert triton.values["vllm:prompt_tokens_total", "m", "1"] == 4
    assert triton.values["vllm:request_success_total", "m", "1", "stop"] == 2
    assert triton.values["vllm:request_success_total", "m", "1", "error"] == 1
    assert triton.observed == {"vllm:request_params_n": [1, 2, 1, 2]}
    assert triton.values[key] == 0, "its part of the gauge is taken away"


def test_gauges_are_taken_away_whatever_else_fails(name: str) -> None:
    triton = FakeTriton()
    sends = exporter(triton, name)
    sends.record(Stats(running=5))
    key = ("vllm:num_requests_running", "m", "1")
    assert eventually(lambda: triton.values.get(key) == 5)
    triton.refuses = "vllm:prompt_tokens_total"
    sends.record(Stats(prompt_tokens=1))
    sends.close()
    assert triton.values[key] == 0


def test_gauges_of_an_idle_engine_are_zero(name: str) -> None:
    triton = FakeTriton()
    sends = exporter(triton, name, idle=True)
    sends.record(Stats(running=5, generation_tokens=1))
    key = ("vllm:generation_tokens_total", "m", "1")
    assert eventually(lambda: triton.values.get(key) == 1)
    assert triton.values.get(("vllm:num_requests_running", "m", "1"), 0.0) == 0
    sends.close()


def test_metrics_are_freed_before_their_families(name: str, kept: list[Any]) -> None:
    triton = FakeTriton()
    exporter(triton, name).close()
    count = len(triton.freed)
    # The last family has a metric for each reason.
    assert count == 2 * len(families(100)) + 1 + len(FINISHED_REASONS)
    assert triton.freed == sorted(triton.freed, reverse=True)
    assert not kept


def test_metrics_of_another_process_are_never_freed(name: str, kept: list[Any]) -> None:
    triton = FakeTriton()
    with SharedReference(f"{name}-other").acquiring():  # found as one of `name` in another process
        sends = exporter(triton, name)
        sends.close()
        del sends
        gc.collect()
        assert triton.freed == []
        assert len(kept) == 1


def test_a_triton_without_histograms_is_told(name: str) -> None:
    triton = FakeTriton()
    del triton.module.MetricFamily.HISTOGRAM
    with pytest.raises(AttributeError, match="HISTOGRAM"):
        exporter(triton, name)


def test_what_is_not_sent_yet_keeps_its_place() -> None:
    sums = StatsAccumulator(families(100))
    sums.add(Stats(e2e_latency=[1, 2, 3], generation_tokens=1, kv_cache_usage=0.5))
    taken = sums.take()
    sums.add(Stats(e2e_latency=[4]))
    sums.put_back({"e2e_latency": taken.observations["e2e_latency"][1:]})

    rest = sums.take()
    assert rest.observations == {"e2e_latency": array("d", [2, 3, 4])}
    assert rest.counts == {}, "taken once"
    assert rest.gauges == {"kv_cache_usage": 0.5}, "as it is"
