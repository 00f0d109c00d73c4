"""What an experiment that several checks share has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.expect import Violation, Words
from pytest_vllm_triton.launchers.base import ServerHandle

# What a part of an experiment may end with: an error, or that it cannot be done here.
_ENDINGS = (Exception, pytest.skip.Exception)
# Those that say nothing of the backend: no Docker, no disk, a wrong option, or not possible here.
_NO_VERDICT = (OSError, RuntimeError, UserError, psutil.Error, pytest.skip.Exception)


def _is_no_verdict(ending: BaseException) -> bool:
    """Whether it says nothing of the backend; a plain assertion is about the suite itself."""
    is_own = isinstance(ending, AssertionError) and not isinstance(ending, Violation)
    return is_own or isinstance(ending, _NO_VERDICT)


class Seen:
    """What an experiment saw, by name.

    The experiment never fails: what goes wrong is kept, and fails the checks that ask for it, or is
    their error where it is not the backend's. Of each step it keeps what the servers logged, for
    the report of a check that fails of what the step saw.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._endings: dict[str, BaseException] = {}
        self._broken_off: dict[str, BaseException] = {}
        self._servers: list[ServerHandle] = []
        self._step = ""
        self._step_of: dict[str, str] = {}
        self._logs: dict[str, str] = {}
        self._steps_asked_for: list[str] = []

    def watch(self, server: ServerHandle) -> None:
        """Keep what this server logs from the next step on."""
        self._servers.append(server)

    def forget_what_was_asked(self) -> None:
        """Another check begins."""
        self._steps_asked_for.clear()

    def logs(self) -> str:
        """What the servers logged in the steps that saw, or should have seen, what the check has
        asked for."""
        steps = dict.fromkeys(self._steps_asked_for)
        found = [f"[{step}]\n{self._logs[step]}" for step in steps if self._logs.get(step)]
        return "\n".join(found)

    def __setitem__(self, name: str, fact: Any) -> None:
        self._facts[name] = fact
        self._step_of[name] = self._step

    def __getitem__(self, name: str) -> Any:
        known = self._step_of.get(name)
        self._steps_asked_for += self._broken_off if known is None else [known]
        if name in self._facts:
            return self._facts[name]
        if name in self._endings:
            raise self._endings[name]
        for step, ending in self._broken_off.items():
            # Of several, those that are the backend's go first: nothing hides a failure.
            if not _is_no_verdict(ending):
                reason = f"the experiment broke off at '{step}': {ending}"
                raise Violation(name, Words("to be seen"), Words(reason))
        for ending in self._broken_off.values():
            raise ending
        raise Violation(name, Words("to be seen"), Words("the experiment did not come that far"))

    def look(self, name: str, see: Callable[[], Any]) -> None:
        """Keep what `see` returns or raises."""
        self._step_of[name] = self._step
        try:
            self._facts[name] = see()
        except _ENDINGS as ending:
            self._endings[name] = ending

    def step(self, act: Callable[[], None]) -> bool:
        """A part of the experiment: what it raises stands for all that it did not get to see.

        Returns whether it came to its end.
        """
        name, outer = act.__name__.replace("_", " "), self._step
        logs = {server.log: server.log.position() for server in self._servers if server.log}
        self._step = name
        try:
            act()
        except _ENDINGS as ending:
            self._broken_off[name] = ending
            return False
        finally:
            self._step = outer
            self._logs[name] = "\n".join(log.read(since) for log, since in logs.items())
        return True
