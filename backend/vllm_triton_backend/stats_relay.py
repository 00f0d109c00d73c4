"""vLLM's statistics on their way to Triton's metrics, through what instances share."""

from __future__ import annotations

from vllm_triton_backend.metrics import MetricsExporter
from vllm_triton_backend.sharing import EngineShare
from vllm_triton_backend.stats import Stats


class StatsRelay:
    """Takes vLLM's statistics, which begin before Triton's metrics can be made.

    They are dropped until then, and for good on a server without metrics.
    """

    def __init__(self, share: EngineShare) -> None:
        self._exporter: MetricsExporter | None = None
        self._share = share

    def attach(self, exporter: MetricsExporter) -> None:
        """Where the statistics go from now on; `close` closes it."""
        self._exporter = exporter

    def record(self, stats: Stats) -> None:
        """Statistics that this instance was given."""
        self.export(self._share.record(stats))

    def export(self, stats: Stats) -> None:
        exporter = self._exporter  # which `close` may take away meanwhile, in another thread
        if exporter is not None:
            exporter.record(stats)

    def count_abort(self) -> None:
        """A request was taken out of the engine, of which vLLM keeps no statistics."""
        self.record(Stats(finished=("abort",)))

    def close(self) -> None:
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.close()
