"""The table and the JSON document of a benchmark."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.digest import median, quantile
from benchmarks.run import Run

SERVE, ASYNC = "vllm-serve", "async-llm"
_LATENCIES = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")


@dataclass(frozen=True)
class Row:
    """One system at one level: medians over the rounds.

    Attributes:
        runs: how many rounds that are.
        disturbed: the host was busy with something else in all of them.
        tok_s: new tokens per second.
        ttft_p50, ttft_p99, tpot_p50, tpot_p99: milliseconds.
        tokens_per_piece: how many tokens a response brings.
        cpu_ms: CPU milliseconds per 1,000 tokens by role, the load generator as "client".
        ratios: "tok_s / vllm-serve" and the like -> median of the rounds' ratios.
    """

    streams: int
    system: str
    runs: int
    disturbed: bool
    tok_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    tokens_per_piece: float
    cpu_ms: dict[str, float]
    ratios: dict[str, float]


def summary(run: Run) -> dict[str, float]:
    """The figures of one run; latencies in milliseconds."""
    figures = run.figures
    return {
        "tok_s": figures.tokens_per_second,
        "ttft_p50": 1000 * quantile(figures.ttft, 0.5),
        "ttft_p99": 1000 * quantile(figures.ttft, 0.99),
        "tpot_p50": 1000 * quantile(figures.tpot, 0.5),
        "tpot_p99": 1000 * quantile(figures.tpot, 0.99),
    }


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row per level and system, in the order in which they were first measured.

    Disturbed runs count only where there are no others.
    """
    found = []
    by_key = {(run.streams, run.system, run.round): run for run in runs}
    for streams, system in dict.fromkeys((run.streams, run.system) for run in sorted_runs(runs)):
        same = [run for run in runs if (run.streams, run.system) == (streams, system)]
        same = [run for run in same if not run.disturbed] or same
        figures = [summary(run) for run in same]
        ratios = {}
        for baseline in (SERVE, ASYNC):
            for key in ("tok_s", "ttft_p50", "tpot_p99"):
                # Of runs that were neighbours in time: what slows both slows no ratio.
                pairs = [
                    (run, other)
                    for run in same
                    if (other := by_key.get((streams, baseline, run.round))) is not None
                ]
                quiet = [pair for pair in pairs if not (pair[0].disturbed or pair[1].disturbed)]
                values = [
                    summary(run)[key] / theirs
                    for run, other in quiet or pairs
                    if (theirs := summary(other)[key])
                ]
                if values and system != baseline:
                    ratios[f"{key} / {baseline}"] = median(values)
        tokens = sum(run.figures.tokens for run in same)
        seconds: dict[str, float] = {"client": sum(run.figures.cpu for run in same)}
        if system == ASYNC:
            seconds = {}  # it makes its load itself
        for run in same:
            for role, used in run.cpu_by_role.items():
                seconds[role] = seconds.get(role, 0.0) + used
        found.append(
            Row(
                streams=streams,
                system=system,
                runs=len(same),
                disturbed=any(run.disturbed for run in same),
                **{key: median([one[key] for one in figures]) for key in figures[0]},
                tokens_per_piece=tokens / max(1, sum(run.figures.pieces for run in same)),
                cpu_ms={
                    role: 1e6 * used / tokens if tokens else math.nan
                    for role, used in seconds.items()
                },
                ratios=ratios,
            )
        )
    return found


def sorted_runs(runs: Iterable[Run]) -> list[Run]:
    """By level and round; within a round as measured."""
    return sorted(runs, key=lambda run: (run.streams, run.round))


def table(found: Sequence[Row]) -> str:
    """The rows for a terminal (and for Markdown, as a code block)."""
    head = (
        *("streams", "system", "tok/s", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms"),
        *("tok/resp", "tok/s:serve", "tok/s:async", "TTFT:serve", "TPOT99:serve", "CPU ms/ktok"),
    )
    lines = [list(head)]
    for row in found:
        ratio = [
            f"{row.ratios[key]:.2f}" if key in row.ratios else "-"
            for key in (
                f"tok_s / {SERVE}",
                f"tok_s / {ASYNC}",
                f"ttft_p50 / {SERVE}",
                f"tpot_p99 / {SERVE}",
            )
        ]
        cpu = " ".join(f"{role} {used:.0f}" for role, used in sorted(row.cpu_ms.items()) if used)
        lines.append(
            [
                str(row.streams),
                row.system + (" (disturbed)" if row.disturbed else ""),
                f"{row.tok_s:.0f}",
                *(f"{getattr(row, key):.1f}" for key in _LATENCIES),
                f"{row.tokens_per_piece:.2f}",
                *ratio,
                cpu,
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {1, len(head) - 1}
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def host_facts() -> dict[str, Any]:
    """The machine."""
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "client_python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        names = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    facts["cpu"] = ", ".join(sorted(names))
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        facts["gpus"] = done.stdout.splitlines()[1:] if done.returncode == 0 else []
    except OSError:
        facts["gpus"] = []
    return facts


def run_json(run: Run, raw: bool) -> dict[str, Any]:
    """One run for the JSON document; with `raw`, every request's latencies in seconds."""
    figures = run.figures
    value: dict[str, Any] = {
        "system": run.system,
        "streams": run.streams,
        "round": run.round,
        **{key: round(number, 3) for key, number in summary(run).items()},
        "seconds": round(figures.ended - figures.started, 3),
        "tokens": figures.tokens,
        "responses": figures.pieces,
        "requests": len(figures.ttft),
        "errors": figures.errors,
        "client_cpu_seconds": round(figures.cpu, 3),
        "cpu_seconds": {role: round(used, 3) for role, used in run.cpu_by_role.items()},
        "cpu_seconds_of_idle_servers": round(run.cpu_elsewhere, 3),
        "foreign_cpu_share": round(run.foreign, 3),
    }
    if raw:
        value["ttft_seconds"] = [round(number, 6) for number in figures.ttft]
        value["tpot_seconds"] = [round(number, 6) for number in figures.tpot]
    return value
