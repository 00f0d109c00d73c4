"""The server's Prometheus page, read with Prometheus' own parser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.plain_http import plain_client
from pytest_vllm_triton.verdicts import untested

# Backends may hand their metrics over a few times a second; Triton refreshes its own likewise.
SETTLE_SECONDS = 30.0
# How long to look for metrics that must not come.
NO_METRICS_SECONDS = 2.0
_PAUSE = 0.1
# More than a backend that hands its metrics over once a second takes on a host that stands still.
_QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class MetricsPage:
    """One state of the page.

    Attributes:
        text: as it was served.
        labels: the labels that `value` and its kin look for.
    """

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def families(self) -> list[Metric]:
        """All families; raises ValueError where the page is no Prometheus text."""
        return list(text_string_to_metric_families(self.text))

    def samples_of(self, **labels: str) -> list[Sample]:
        """All samples with these labels (and maybe more)."""
        return [
            sample
            for family in self.families
            for sample in family.samples
            if labels.items() <= sample.labels.items()
        ]

    def of(self, model: str) -> MetricsPage:
        """The same page, looked at for one model."""
        return MetricsPage(self.text, {"model": model})

    def growth_to(self, later: MetricsPage) -> Growth:
        """What happened since, seen by the same model."""
        return Growth(self, MetricsPage(later.text, self.labels))

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name and these labels; 0 where there is none."""
        # The parser calls every counter …_total.
        names = {name, f"{name}_total"}
        wanted = {**self.labels, **labels}
        return sum(s.value for s in self.samples_of(**wanted) if s.name in names)

    def buckets(self, name: str) -> dict[str, float]:
        """Upper bound as written -> count, of the histogram of this name."""
        found = (s for s in self.samples_of(**self.labels) if s.name == f"{name}_bucket")
        return {sample.labels["le"]: sample.value for sample in found}

    def vllm_lines(self, model: str) -> list[str]:
        """The lines that start with ``vllm:`` and belong to this model."""
        return re.findall(rf'^vllm:.*model="{re.escape(model)}".*$', self.text, re.MULTILINE)


@dataclass(frozen=True)
class Growth:
    """What happened between two states of the page, seen by one model's labels."""

    before: MetricsPage
    after: MetricsPage

    def of(self, name: str, **labels: str) -> float:
        """How much the samples of this name grew."""
        return self.after.value(name, **labels) - self.before.value(name, **labels)


def metrics_page(server: ServerHandle) -> MetricsPage:
    """The page as it is now."""
    if server.endpoints.metrics is None:
        untested("the server has no known metrics address")
    with plain_client(10.0) as client:
        answer = client.get(server.endpoints.metrics)
    answer.raise_for_status()
    return MetricsPage(answer.text)


def settled_page(
    server: ServerHandle,
    is_settled: Callable[[MetricsPage], bool],
    seconds: float = SETTLE_SECONDS,
) -> MetricsPage:
    """The first page of which this is true, or the last one before the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        page = metrics_page(server)
        if is_settled(page) or time.monotonic() > deadline:
            return page
        time.sleep(_PAUSE)


def page_with_lines(
    server: ServerHandle, model: str, seconds: float = SETTLE_SECONDS
) -> MetricsPage:
    """The first page that has vLLM's metrics of this model, or the last one before the deadline."""
    return settled_page(server, lambda page: bool(page.vllm_lines(model)), seconds)


def quiet_page(server: ServerHandle, model: str, *others: str) -> MetricsPage:
    """The page, seen by this model, once its vLLM metrics (and those of the others) stand still:
    what earlier requests have left to count is counted by then. The last one where they never do.
    """

    def lines(page: MetricsPage) -> list[list[str]]:
        return [page.vllm_lines(name) for name in (model, *others)]

    deadline = time.monotonic() + SETTLE_SECONDS
    page = metrics_page(server)
    since = time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        now = metrics_page(server)
        if lines(now) != lines(page):
            since = time.monotonic()
        page = now
    return page.of(model)


def grown_page(
    server: ServerHandle,
    before: MetricsPage,
    expected: Sequence[tuple[str, float]],
    seconds: float = SETTLE_SECONDS,
) -> Growth:
    """The growth once all samples (names of one model's, in `before.labels`) grew as expected, or
    at the deadline."""

    def is_settled(page: MetricsPage) -> bool:
        growth = before.growth_to(page)
        return all(growth.of(name) >= amount for name, amount in expected)

    after = settled_page(server, is_settled, seconds)
    return before.growth_to(after)
