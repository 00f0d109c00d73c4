"""Which commit a folder is of: what a report has to say for others to test the same again."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SECONDS = 10


def revision(folder: Path, file: str) -> str:
    """The commit (and nearest tag) of the Git checkout that holds `folder`, and whether the
    checkout has been changed since; "" if `file` is not under version control there.

    A package that is installed somewhere inside of a checkout is no part of it.
    """
    if not _git(folder, "ls-files", "--", file):
        return ""
    return _git(folder, "describe", "--tags", "--always", "--dirty= with changes")


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, "" where there is no git, or it refuses."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
