"""One benchmark: boots, warm-up, interleaved rounds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks import cpu
from benchmarks.digest import Figures
from benchmarks.load import ClientPool
from benchmarks.systems import Server

#: Share of the host's CPU from which on a run is called disturbed.
DISTURBED = 0.1


@dataclass
class Run:
    """One measured run.

    Attributes:
        cpu_by_role: CPU seconds of the measured server's processes, by role.
        cpu_elsewhere: CPU seconds of all the other servers, which should be idle.
        foreign: share of the host's CPU that went to processes which are not the benchmark's.
    """

    system: str
    streams: int
    round: int
    figures: Figures
    cpu_by_role: dict[str, float]
    cpu_elsewhere: float
    foreign: float

    @property
    def disturbed(self) -> bool:
        """Whether the host was busy with something else."""
        return self.foreign > DISTURBED


@dataclass(frozen=True)
class Plan:
    """How a benchmark is carried out.

    Attributes:
        levels: how many streams at a time, one level after the other.
        seconds: that a run takes at one level, after ``warmup_seconds`` that do not count.
        rounds: how often every system is measured at every level.
        retries: how often a disturbed run is repeated, before the last attempt counts.
        together: all servers are up for the whole benchmark; else one at a time, anew each round.
        parallel_boot: they are booted at once, not one after the other.
    """

    levels: Sequence[int]
    seconds: float
    warmup_seconds: float
    rounds: int
    retries: int
    together: bool
    parallel_boot: bool


Say = Callable[[str], None]


def measure_all(
    servers: Sequence[Server], pool: ClientPool, plan: Plan, say: Say, runs: list[Run]
) -> None:
    """All rounds of all systems at all levels, appended to `runs` one by one.

    The servers are stopped by the caller.
    """
    if plan.together:
        boot(servers, plan.parallel_boot, say)
        for level in plan.levels:
            for number in range(plan.rounds):
                for server, system in _in_turn(servers, number):
                    runs.append(_measure(server, system, servers, pool, plan, level, number, say))
        return
    for number in range(plan.rounds):
        for server in servers if number % 2 == 0 else list(reversed(servers)):
            boot([server], False, say)
            try:
                for level in plan.levels:
                    for system in server.systems:
                        runs.append(
                            _measure(server, system, [server], pool, plan, level, number, say)
                        )
            finally:
                server.stop()


def boot(servers: Sequence[Server], parallel: bool, say: Say) -> None:
    """Start servers; raises ServerFailed when one does not get ready."""

    def start(server: Server) -> None:
        began = time.monotonic()
        server.start()
        say(f"{server.name} is ready after {time.monotonic() - began:.0f} s")

    with ThreadPoolExecutor(len(servers) if parallel else 1) as pool:
        for done in [pool.submit(start, server) for server in servers]:
            done.result()


@contextlib.contextmanager
def stopping(servers: Sequence[Server]) -> Iterator[None]:
    """Stop all servers in the end, at once."""
    try:
        yield
    finally:
        with ThreadPoolExecutor(len(servers)) as pool:
            for done in [pool.submit(server.stop) for server in servers]:
                done.result()


def _in_turn(servers: Sequence[Server], number: int) -> list[tuple[Server, str]]:
    """Every other round backwards, so that a drift of the host's speed cancels."""
    pairs = [(server, system) for server in servers for system in server.systems]
    return pairs if number % 2 == 0 else pairs[::-1]


def _measure(
    server: Server,
    system: str,
    up: Sequence[Server],
    pool: ClientPool,
    plan: Plan,
    level: int,
    number: int,
    say: Say,
) -> Run:
    if number == 0 or not plan.together:
        server.measure(system, pool, level, plan.warmup_seconds)
    for _ in range(plan.retries):
        run = _attempt(server, system, up, pool, plan.seconds, level, number)
        if not run.disturbed:
            break
        say(f"     disturbed ({run.foreign:.0%} of the CPU went elsewhere); again")
    else:
        run = _attempt(server, system, up, pool, plan.seconds, level, number)
    say(
        f"{level:4} streams, round {number + 1}, {system:18} "
        f"{run.figures.tokens_per_second:8.0f} tok/s"
        + (f"  (disturbed: {run.foreign:.0%})" if run.disturbed else "")
        + "".join(f"\n    {count} x {error}" for error, count in run.figures.errors.items())
    )
    return run


def _attempt(
    server: Server,
    system: str,
    up: Sequence[Server],
    pool: ClientPool,
    seconds: float,
    level: int,
    number: int,
) -> Run:
    idle = [pid for other in up if other is not server for pid in other.pids()]
    pids, rest = server.pids(), [*pool.pids(), os.getpid()]
    before = [cpu.by_role(group) for group in (pids, idle, rest)]
    host_before, began = cpu.of_host(), time.monotonic()
    figures = server.measure(system, pool, level, seconds)
    host, elapsed = cpu.of_host() - host_before, time.monotonic() - began
    after = [cpu.by_role(group) for group in (pids, idle, rest)]
    used = {role: total - before[0].get(role, 0.0) for role, total in after[0].items()}
    own, elsewhere, clients = (
        sum(later.values()) - sum(earlier.values())
        for later, earlier in zip(after, before, strict=True)
    )
    capacity = elapsed * (os.cpu_count() or 1)
    foreign = max(0.0, host - own - elsewhere - clients) / capacity
    return Run(system, level, number, figures, used, elsewhere, foreign)
