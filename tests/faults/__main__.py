"""Proof that the suite's checks can fail: ``python tests/faults`` (``make faults``).

Puts each fault of ``table/`` into a copy of the backend, runs the checks of the groups that it
touches on a real server, and says whether exactly the right requirements turned red.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from fault_document import read_document, write_document
from fault_runner import Outcome, read_outcomes, run, write_outcomes
from fault_table import HARMLESS, load_faults

from pytest_vllm_triton.gpus import list_gpus


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to try (default: all)")
    parser.add_argument("--group", action="append", help="only faults of this group, e.g. STR")
    parser.add_argument("--jobs", type=int, default=2, help="servers at a time (default: 2)")
    parser.add_argument("--alone", action="store_true", help="a server for each fault")
    parser.add_argument("--harmless", action="store_true", help="try harmless.toml, all together")
    parser.add_argument(
        "--results",
        type=Path,
        help="keep the outcomes in this JSON file; what it says was caught is not run again",
    )
    parser.add_argument(
        "--document",
        type=Path,
        help="write the table of faults to this file, and keep what it says of others",
    )
    options = parser.parse_args()
    if options.harmless:
        if options.names or options.group:
            parser.error("--harmless tries all harmless changes together: give no names or groups")
        return _try_harmless()
    faults = load_faults()
    if unknown := set(options.names) - set(faults):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    if unknown := set(options.group or ()) - {
        _group(k) for f in faults.values() for k in f.allowed
    }:
        parser.error(f"no faults in the groups {', '.join(sorted(unknown))}")
    chosen = [
        fault
        for name, fault in faults.items()
        if (not options.names or name in options.names)
        and (not options.group or any(_group(k) in options.group for k in fault.allowed))
    ]
    gpus = len(list_gpus())
    if out_of_reach := [fault.name for fault in chosen if fault.gpus > gpus]:
        _tell(f"this host has {gpus} GPUs, too few for {', '.join(out_of_reach)}")
        chosen = [fault for fault in chosen if fault.gpus <= gpus]
    outcomes = read_outcomes(options.results) if options.results else {}
    outcomes = {name: outcome for name, outcome in outcomes.items() if name in faults}
    left = [fault for fault in chosen if not _is_caught(outcomes.get(fault.name))]
    started = time.monotonic()
    work = _work_folder()
    _tell(f"{len(left)} faults; logs in {work}")
    for outcome in run(left, work, jobs=options.jobs, alone=options.alone, tell=_tell):
        outcomes[outcome.fault] = outcome
        _tell(_line(outcome))
        if options.results:
            write_outcomes(options.results, outcomes.values())
    if options.document:
        told = read_document(options.document, faults) if options.document.exists() else {}
        told |= outcomes
        write_document(options.document, faults, {n: told[n] for n in faults if n in told})
    caught = sum(_is_caught(outcomes[fault.name]) for fault in chosen)
    minutes = (time.monotonic() - started) / 60
    _tell(f"{caught} of {len(chosen)} faults caught, each by its requirements; {minutes:.0f} min")
    return 0 if caught == len(chosen) else 1


def _try_harmless() -> int:
    """One run of the whole suite on a backend with all harmless changes, which must be green."""
    changes = load_faults(HARMLESS)
    work = _work_folder()
    _tell(f"{len(changes)} harmless changes; logs in {work}")
    outcomes = list(run(changes.values(), work, jobs=1, alone=False, tell=_tell))
    blamed = sorted({key for outcome in outcomes for key in outcome.unrelated})
    trouble = {outcome.trouble for outcome in outcomes if outcome.trouble}
    _tell(f"blamed for: {' '.join(blamed) or 'nothing'}" if not trouble else trouble.pop())
    return 1 if blamed or trouble else 0


def _work_folder() -> Path:
    # Short: the paths of a server's sockets and models lie below it. Kept for a look at the logs.
    return Path(tempfile.mkdtemp(prefix="faults-"))


def _is_caught(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.verdict == "caught"


def _group(key: str) -> str:
    return key.partition("-")[0]


def _line(outcome: Outcome) -> str:
    parts = [f"{outcome.verdict:12} {outcome.fault}: {' '.join(outcome.red) or '-'}"]
    if outcome.unrelated:
        parts.append(f"unrelated: {' '.join(outcome.unrelated)}")
    if outcome.missed:
        parts.append(f"not red: {' '.join(outcome.missed)}")
    if outcome.errors:
        parts.append(f"ERROR, not FAIL: {' '.join(outcome.errors)}")
    if outcome.trouble:
        parts.append(outcome.trouble)
    return " | ".join(parts)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
