"""Two reports of one backend, got by different launchers, must say the same of each requirement
that the second one checked, unless the first one could not test it.

Usage: same_verdicts.py ONE.json OTHER.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def verdicts(path: str) -> dict[str, str]:
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    return {row["id"]: row["verdict"] for row in report["requirements"] if row["checks"]}


def main(one: str, other: str) -> int:
    first, second = verdicts(one), verdicts(other)
    differing = [
        f"{key}: {first.get(key, 'absent')} in {one}, {second[key]} in {other}"
        for key in sorted(second)
        if first.get(key) not in (second[key], "UNTESTED")
    ]
    print("\n".join(differing) or f"the same verdicts on {len(second)} requirements")
    return 1 if differing or not second else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
