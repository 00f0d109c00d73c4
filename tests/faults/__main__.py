"""Proof that the suite's checks can fail: ``python tests/faults`` (``make faults``).

Puts each fault of ``faults.toml`` into a copy of the backend, runs the checks of the groups that it
touches on a real server, and says whether exactly the right requirements turned red.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from fault_document import write_document
from fault_runner import Outcome, run, to_json
from fault_table import load_faults


def main() -> int:
    faults = load_faults()
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to try (default: all)")
    parser.add_argument("--group", action="append", help="only faults of this group, e.g. STR")
    parser.add_argument("--jobs", type=int, default=2, help="servers at a time (default: 2)")
    parser.add_argument("--alone", action="store_true", help="a server for each fault")
    parser.add_argument("--results", type=Path, help="write the outcomes to this JSON file")
    parser.add_argument("--document", type=Path, help="write the table of faults to this file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(faults):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    chosen = [
        fault
        for name, fault in faults.items()
        if (not options.names or name in options.names)
        and (not options.group or any(_group(k) in options.group for k in fault.allowed))
    ]
    outcomes: dict[str, Outcome] = {}
    started = time.monotonic()
    # Short: the paths of a server's sockets and models lie below it. Kept for a look at the logs.
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"{len(chosen)} faults; logs in {work}", flush=True)
    for outcome in run(chosen, work, jobs=options.jobs, alone=options.alone, tell=_tell):
        outcomes[outcome.fault] = outcome
        _tell(_line(outcome))
        if options.results:
            options.results.write_text(to_json(outcomes.values()), encoding="utf-8")
    if options.document:
        write_document(options.document, faults, outcomes)
    caught = sum(outcome.verdict == "caught" for outcome in outcomes.values())
    minutes = (time.monotonic() - started) / 60
    _tell(f"{caught} of {len(chosen)} faults caught, each by its requirements; {minutes:.0f} min")
    return 0 if caught == len(chosen) else 1


def _group(key: str) -> str:
    return key.partition("-")[0]


def _line(outcome: Outcome) -> str:
    parts = [f"{outcome.verdict:12} {outcome.fault}: {' '.join(outcome.red) or '-'}"]
    if outcome.unrelated:
        parts.append(f"unrelated: {' '.join(outcome.unrelated)}")
    if outcome.missed:
        parts.append(f"not red: {' '.join(outcome.missed)}")
    if outcome.trouble:
        parts.append(outcome.trouble)
    return " | ".join(parts)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
