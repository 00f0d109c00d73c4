"""Runs the suite on backends with faults, several at a time, and says what it caught."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fault_table import Fault, copy_sources

from pytest_vllm_triton.verdicts import Verdict

_BATCH = 6
_SECONDS = 1800.0


class NotRun(Exception):
    """A run of the suite that tells nothing of the backend's faults."""


@dataclass(frozen=True)
class Outcome:
    """What the suite said of one fault.

    Attributes:
        red: the requirements that turned red because of it.
        unrelated: red ones that it should not have touched.
        missed: those of its `red` that did not turn red.
        errors: those of its red ones that are an ERROR: the check stumbled, which is no FAIL.
        trouble: why nothing is known, e.g. the server did not get ready; "" otherwise.
        seconds: of the run, which it may have shared with other faults.
    """

    fault: str
    red: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    trouble: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """ "caught" (exactly), "survived" (nothing of it was seen), or what is in between."""
        if self.trouble:
            return "not run"
        if not self.red:
            return "survived"
        return "caught" if not self.unrelated and not self.missed else "caught, but"


def plan(faults: Iterable[Fault], alone: bool) -> list[list[Fault]]:
    """Which faults go together on one server: those that need the same checks and cannot be taken
    for one another, because no requirement may be red by two of them. What a fault does to checks
    that it does not name is unknown. Changes that are not to turn anything red all go together."""
    batches: list[list[Fault]] = []
    for fault in faults:
        for batch in batches:
            if not alone and _fits(fault, batch):
                batch.append(fault)
                break
        else:
            batches.append([fault])
    # The longest first, so that the last server does not run alone at the end.
    return sorted(batches, key=lambda batch: (-len(batch[0].selection), -len(batch)))


def _fits(fault: Fault, batch: Sequence[Fault]) -> bool:
    return (
        (len(batch) < _BATCH or not fault.allowed)
        and not any(one.alone or one.reaches_others for one in (fault, *batch))
        and fault.selection == batch[0].selection
        and all(fault.allowed.isdisjoint(other.allowed) for other in batch)
        # Edits of one place cannot be told apart in the source.
        and all((fault.file, fault.old) != (other.file, other.old) for other in batch)
        and not any(fault.file == other.file and _overlap(fault, other) for other in batch)
    )


def _overlap(one: Fault, other: Fault) -> bool:
    return bool(one.more and other.more) or one.old in other.old or other.old in one.old


def run(
    faults: Sequence[Fault],
    work: Path,
    *,
    jobs: int,
    alone: bool,
    tell: Callable[[str], None],
) -> Iterator[Outcome]:
    """The outcomes, as they come.

    Faults that share a server are tried one by one when not exactly their requirements turned red.
    """
    kept_apart = [fault for fault in faults if fault.reaches_others]
    pytests = Pytests()
    with ThreadPoolExecutor(jobs) as pool, _dropped_at_an_interrupt(pool, pytests):
        waiting = {
            pool.submit(_try, batch, work / f"{index:03}", pytests): batch
            for index, batch in enumerate(plan((f for f in faults if not f.reaches_others), alone))
        }
        repeats = 0
        while waiting:
            done = next(as_completed(waiting))
            batch = waiting.pop(done)
            outcomes = done.result()
            unclear = any(outcome.verdict != "caught" for outcome in outcomes)
            if len(batch) > 1 and unclear and batch[0].allowed:
                tell(f"one by one: {', '.join(fault.name for fault in batch)}")
                for fault in batch:
                    again = pool.submit(_try, [fault], work / f"again-{repeats:03}", pytests)
                    waiting[again] = [fault]
                    repeats += 1
                continue
            yield from outcomes
        for index, fault in enumerate(kept_apart):
            yield from pool.submit(_try, [fault], work / f"apart-{index:03}", pytests).result()


class Pytests:
    """The running pytests, each in a process group of its own: an interrupt reaches them only from
    here, and once, wherever it came from. (A second one would cut their tidying short.)"""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], folder: Path, output: Path) -> int:
        """The exit status.

        Raises:
            NotRun: it takes too long, and was killed.
        """
        with (
            output.open("w") as out,
            subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            ) as process,
        ):
            self._running.add(process)
            try:
                return process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise NotRun(f"not at its end after {_SECONDS:.0f} s; see {output}") from None
            finally:
                self._running.discard(process)

    def interrupt(self) -> None:
        for process in self._running.copy():
            process.send_signal(signal.SIGINT)


@contextmanager
def _dropped_at_an_interrupt(pool: ThreadPoolExecutor, pytests: Pytests) -> Iterator[None]:
    """The running pytests are interrupted and end by themselves; no other is started."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        pytests.interrupt()
        raise


def _try(batch: Sequence[Fault], folder: Path, pytests: Pytests) -> list[Outcome]:
    try:
        document = _report_of(batch, folder, pytests)
    except NotRun as trouble:
        return [Outcome(fault.name, trouble=str(trouble)) for fault in batch]
    return outcomes_of(batch, document)


def _report_of(batch: Sequence[Fault], folder: Path, pytests: Pytests) -> dict[str, Any]:
    """The report of the suite on a backend with these faults.

    Raises:
        NotRun: it told nothing of them.
    """
    folder.mkdir(parents=True)
    backend = copy_sources(folder, batch)
    selection = ",".join(sorted(batch[0].selection))
    report, output = folder / "report.json", folder / "output.txt"
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-q"),
        *("--vllm-model=known-answer", f"--triton-backend-dir={backend}"),
        *([f"--conformance-select={selection}"] if selection else []),
        f"--conformance-report={report}",
        f"--basetemp={folder / 'tmp'}",
    ]
    status = pytests.run(command, folder, output)
    if not report.is_file():
        raise NotRun(f"pytest ended with status {status} and no report; see {output}")
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if set(_judged(document).values()) <= {Verdict.ERROR.value}:
        # No check at all, or no server for them: so it would be on a host without memory, too.
        raise NotRun(f"no check had a verdict; see {output}")
    return document


def outcomes_of(batch: Sequence[Fault], document: Mapping[str, Any]) -> list[Outcome]:
    """What a report says of each of the faults that the backend had."""
    judged = _judged(document)
    seconds = sum(check["seconds"] for row in document["requirements"] for check in row["checks"])
    red = {key for key, verdict in judged.items() if Verdict(verdict).is_red}
    allowed = frozenset().union(*(fault.allowed for fault in batch))
    return [
        Outcome(
            fault.name,
            red=tuple(sorted(red & fault.allowed if len(batch) > 1 else red)),
            unrelated=tuple(sorted(red - allowed)),
            missed=tuple(sorted(fault.red - red)),
            errors=tuple(sorted(key for key in fault.red & red if judged[key] == "ERROR")),
            seconds=round(seconds, 1),
        )
        for fault in batch
    ]


def _judged(document: Mapping[str, Any]) -> dict[str, str]:
    """Requirement -> verdict, of those that were checked."""
    return {row["id"]: row["verdict"] for row in document["requirements"] if row["checks"]}


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """A JSON object, one entry per fault."""
    entries = {
        outcome.fault: {**asdict(outcome), "verdict": outcome.verdict} for outcome in outcomes
    }
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """What `write_outcomes` wrote, by fault; nothing if there is no such file."""
    if not path.is_file():
        return {}
    names = {field.name for field in fields(Outcome)}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        fault: Outcome(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in entry.items()
                if key in names
            }
        )
        for fault, entry in entries.items()
    }
