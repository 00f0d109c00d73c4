"""Where the stub's time goes: CPU by thread from /proc, and py-spy's samples of its stacks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cpu
from benchmarks.digest import Figures

RATE = 200
SHOWN = 25


@dataclass
class Profile:
    """What a server's process did while it was under load.

    Attributes:
        tokens_per_second: under the profiler.
        threads: thread name -> share of one core.
        busy, gil: collapsed stacks ("thread;frame;…" -> samples) of threads that run, and of the
            one that holds the interpreter's lock.
    """

    tokens_per_second: float = 0.0
    threads: dict[str, float] = field(default_factory=dict)
    busy: Counter[str] = field(default_factory=Counter)
    gil: Counter[str] = field(default_factory=Counter)


def find_py_spy() -> str | None:
    """py-spy on PATH, or beside this Python."""
    beside = Path(sys.executable).with_name("py-spy")
    return shutil.which("py-spy") or (str(beside) if beside.exists() else None)


def profile(
    pid: int, load: Callable[[float], Figures], seconds: float, py_spy: str, folder: Path
) -> Profile:
    """Sample the process while `load` keeps it busy: once all running threads, once the lock."""
    result = Profile()
    names = _thread_names(pid, py_spy)
    for options, stacks in (([], result.busy), (["--gil"], result.gil)):
        output = folder / f"py-spy{''.join(options)}-{pid}.txt"
        sampler = subprocess.Popen(
            [
                *(py_spy, "record", "--pid", str(pid), "--duration", str(max(1, int(seconds)))),
                *("--rate", str(RATE), "--format", "raw", "--threads", "--nonblocking"),
                *("--output", str(output), *options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        before, began = cpu.by_thread(pid), time.monotonic()
        figures = load(seconds + 1.0)
        elapsed = time.monotonic() - began
        after = cpu.by_thread(pid)
        _, complaints = sampler.communicate(timeout=60)
        if sampler.returncode != 0 or not output.exists():
            raise RuntimeError(f"py-spy failed: {complaints.strip()[-500:]}")
        stacks.update(parse(output.read_text()))
        if not options:
            result.tokens_per_second = figures.tokens_per_second
            for thread, used in after.items():
                name = names.get(thread, "native threads")
                share = (used - before.get(thread, 0.0)) / elapsed
                result.threads[name] = result.threads.get(name, 0.0) + share
    return result


def parse(text: str) -> Counter[str]:
    """Collapsed stacks: one a line, the number of samples last."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if count.isdigit():
            found[stack] += int(count)
    return found


def _thread_names(pid: int, py_spy: str) -> dict[int, str]:
    """Native thread id -> Python's name, from ``py-spy dump``."""
    done = subprocess.run(
        [py_spy, "dump", "--pid", str(pid), "--nonblocking"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = {}
    for line in done.stdout.splitlines():
        if line.startswith("Thread "):
            number, _, rest = line.removeprefix("Thread ").partition(" ")
            name = rest.partition('"')[2].rpartition('"')[0]
            if number.isdigit():
                names[int(number)] = name or "other Python threads"
    return names


def by_thread(stacks: Mapping[str, int]) -> Counter[str]:
    """Samples by thread."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[stack.partition(";")[0]] += count
    return found


def own_time(stacks: Mapping[str, int]) -> Counter[str]:
    """Samples by innermost function."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[_function(stack.rpartition(";")[2])] += count
    return found


def total_time(stacks: Mapping[str, int]) -> Counter[str]:
    """Samples by function, whatever it calls included."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        for function in {_function(frame) for frame in stack.split(";")[1:]}:
            found[function] += count
    return found


def _function(frame: str) -> str:
    """Without the line number."""
    return frame.rpartition(":")[0] + ")" if ":" in frame else frame


def describe(found: Profile) -> str:
    """For the terminal."""
    lines = [
        f"{found.tokens_per_second:.0f} tok/s under the profiler; share of one core by thread:"
    ]
    lines += [
        f"  {share:6.2f}  {name}"
        for name, share in sorted(found.threads.items(), key=lambda item: -item[1])
        if share >= 0.005
    ]
    for title, stacks in (("running", found.busy), ("holding the GIL", found.gil)):
        total = max(1, sum(stacks.values()))
        lines.append(f"samples of threads {title}: {total}")
        for heading, counts in (
            ("by thread", by_thread(stacks)),
            ("by function, itself", own_time(stacks)),
            ("by function, with what it calls", total_time(stacks)),
        ):
            lines.append(f"  {heading}")
            lines += [
                f"  {100 * count / total:6.1f} %  {name}"
                for name, count in counts.most_common(SHOWN)
            ]
    return "\n".join(lines)
