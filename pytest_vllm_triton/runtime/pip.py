"""Run pip for a runtime: with the user's own pip configuration, and with nothing left running."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.growing_file import GrowingFile
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.supervision.client import Supervised
from pytest_vllm_triton.texts import cut

POLL_SECONDS = 0.25
#: Of a `Pip`, in the folder that it is given.
FILES = REPORT_FILE, PINS_FILE, LOG_FILE = "pip-report.json", "pins.txt", "pip.log"

#: Settings that send what pip installs elsewhere. All others (indexes, proxies, …) are the user's.
_DIVERTING = frozenset(
    {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_REPORT", "PIP_DRY_RUN"}
)
_NO_CONNECTION = re.compile(
    r"Failed to establish a new connection|NewConnectionError|Max retries exceeded|ConnectTimeout"
    r"|ReadTimeout|Name or service not known|Temporary failure in name resolution|ProxyError"
    r"|connection broken by|SSLError|Connection (refused|reset|timed out)|Network is unreachable"
)
_NO_MATCH = re.compile(r"No matching distribution found for (?P<what>[^\s;]+)")
_AT_WORK = re.compile(
    r"^\s*(Collecting|Downloading|Building wheel for|Using cached|Processing) (?P<what>[^\s;(]+)"
)


class NotForThisPython(RuntimeUnavailable):
    """pip's sources lack something for this Python; they may have it for another one."""


class PipFailed(Exception):
    """pip ended with an error; ``output`` is all it said."""

    def __init__(self, output: str) -> None:
        super().__init__("pip failed")
        self.output = output


class Pip:
    """pip, working on one virtual environment.

    It runs under a supervisor, so that no pip goes on writing when we are interrupted or killed.

    Attributes:
        python: the environment's.
        folder: for pip's log and lists.
        wheels: a folder that is its only source; None: the user's, as pip is configured.
    """

    def __init__(self, python: Path, folder: Path, *, wheels: Path | None = None) -> None:
        self.python = python
        self.folder = folder
        self.wheels = wheels

    def resolve(self, requirements: Sequence[str], progress: Progress) -> list[dict[str, Any]]:
        """What pip would install for these requirements, as its report lists it."""
        report = self.folder / REPORT_FILE
        report.unlink(missing_ok=True)
        self.run(
            [
                "install",
                "--dry-run",
                "--ignore-installed",
                f"--report={report}",
                *requirements,
            ],
            progress,
        )
        installs: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return installs

    def reach(self, requirements: Sequence[str], progress: Progress) -> None:
        """Fail soon, should these be out of reach: few retries, short time limits."""
        self.run(
            ["install", "--dry-run", "--no-deps", "--retries=1", "--timeout=10", *requirements],
            progress,
        )

    def install(
        self, pins: Sequence[str], progress: Progress, now_and_then: Callable[[], None]
    ) -> None:
        """Install exactly these, and nothing with them."""
        # Compiled later, all at once: see the step of that name.
        words = ["install", "--no-deps", "--no-compile", self._listed(pins)]
        self.run(words, progress, now_and_then)

    def build(self, pins: Sequence[str], folder: Path, progress: Progress) -> None:
        """Put wheels of exactly these into a folder."""
        self.run(["wheel", "--no-deps", f"--wheel-dir={folder}", self._listed(pins)], progress)

    def _listed(self, pins: Sequence[str]) -> str:
        path = self.folder / PINS_FILE
        path.write_text("".join(f"{pin}\n" for pin in pins))
        return f"--requirement={path}"

    def run(
        self,
        words: Sequence[str],
        progress: Progress,
        now_and_then: Callable[[], None] = lambda: None,
    ) -> None:
        """Run pip; ``progress`` hears of the package at hand.

        Raises:
            PipFailed: it ended with an error.
        """
        log = self.folder / LOG_FILE
        log.write_bytes(b"")
        command = [
            *[sys.executable, "-m", "pip", "--python", str(self.python)],
            "--disable-pip-version-check",
            "--no-input",
            *words,
            "--progress-bar=off",
        ]
        environment = {k: v for k, v in os.environ.items() if k not in _DIVERTING}
        if self.wheels is not None:
            # Neither indexes nor constraints are for what a bundle has fixed.
            environment = {k: v for k, v in environment.items() if not k.startswith("PIP_")}
            environment["PIP_CONFIG_FILE"] = os.devnull
            environment["PIP_NO_INDEX"] = "1"
            environment["PIP_FIND_LINKS"] = str(self.wheels)
        environment["PYTHONUNBUFFERED"] = "1"
        process = Supervised.start(command, environment, self.folder, log=log)
        try:
            process.wait_started()
            growing = GrowingFile(log)
            while process.is_running():
                for line in growing.new_lines():
                    found = _AT_WORK.match(line)
                    if found:
                        progress(_package_name(found["what"]))
                now_and_then()
                time.sleep(POLL_SECONDS)
        finally:
            # After a normal end nothing is left to kill; after Ctrl-C pip itself is.
            report = process.end(0.0)
        if report.exit_code != 0:
            raise PipFailed(log.read_text("utf-8", "replace"))


def explain(failure: PipFailed, doing: str) -> RuntimeUnavailable:
    """One paragraph: what pip could not do, why, and what to do about it."""
    output = failure.output
    errors = [
        line.partition("ERROR: ")[2].strip() for line in output.splitlines() if "ERROR: " in line
    ]
    said = cut(errors[-1] if errors else output.strip().rpartition("\n")[2], 300)
    missing = _NO_MATCH.search(output)
    if re.search(r"No space left on device", output):
        why, do = "The disk is full.", "Make room, and run it again: it goes on where it stopped."
    elif _NO_CONNECTION.search(output):
        why = "No package index could be reached."
        do = (
            "Check the network and pip's settings (pip config list; PIP_INDEX_URL, PIP_PROXY), or "
            "give pip a folder of wheels with PIP_FIND_LINKS, and run it again: it goes on where "
            "it stopped."
        )
    elif missing and re.match(r"torch==.*\+cpu", missing["what"]):
        why = f"pip's sources do not have {missing['what']}, PyTorch's build for CPUs."
        do = (
            "Add a source that has PyTorch's CPU wheels (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) "
            "and run it again. The address of PyTorch's own is on pytorch.org/get-started, under "
            "Pip and CPU."
        )
    elif missing:
        why = f"pip's sources do not have {missing['what']} for this Python and platform."
        do = (
            "Check pip's settings (pip config list; PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, "
            "PIP_FIND_LINKS, PIP_NO_INDEX), and run it again."
        )
    else:
        why, do = "pip failed.", "Run it again: it goes on where it stopped."
    kind = RuntimeUnavailable
    if missing and not _NO_CONNECTION.search(output):
        kind = NotForThisPython
    return kind(f"The embedded server runtime: {doing} failed. {why} {do} pip said: {said}")


def _package_name(what: str) -> str:
    """The package in "torch==2.13.0", "numpy<3,>=1", or the path of a wheel."""
    name = what.rpartition("/")[2]
    return re.split(r"[=<>!~\[;]|-\d", name, maxsplit=1)[0]
