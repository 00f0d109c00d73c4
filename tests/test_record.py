"""What an experiment keeps for the checks that ask it: facts, endings, and the servers' logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.record import Seen
from pytest_vllm_triton.expect import Violation
from pytest_vllm_triton.launchers.base import ServerLog


class Experiment:
    """Two steps; in each the server logs a line, and in the second a step within logs another."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen = Seen()
        server: Any = SimpleNamespace(log=ServerLog(file))
        self.seen.watch(server)

    def log(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")

    def first(self) -> None:
        self.log("one")
        self.seen["early"] = 1

    def second(self) -> None:
        self.log("two")
        self.seen.step(self.inner)
        self.seen["late"] = 2
        raise Violation("thing", "right", "wrong")

    def inner(self) -> None:
        self.log("within")
        self.seen.look("deep", lambda: 3)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = Experiment(tmp_path / "log")
    experiment.log("before")
    assert experiment.seen.step(experiment.first)
    assert not experiment.seen.step(experiment.second)
    return experiment


@pytest.mark.parametrize(
    ("name", "log"),
    [
        ("early", "[first]\none\n"),
        ("late", "[second]\ntwo\nwithin\n"),
        ("deep", "[inner]\nwithin\n"),
    ],
)
def test_logs_are_those_of_the_step_that_saw_it(
    experiment: Experiment, name: str, log: str
) -> None:
    experiment.seen[name]
    assert experiment.seen.logs() == log


def test_each_check_has_its_own(experiment: Experiment) -> None:
    experiment.seen["early"]
    experiment.seen.forget_what_was_asked()
    assert experiment.seen.logs() == ""


def test_what_a_broken_step_did_not_see_fails_the_check(experiment: Experiment) -> None:
    def ask() -> Callable[[], object]:
        return experiment.seen["never"]  # type: ignore[no-any-return]

    with pytest.raises(Violation, match="broke off at 'second'"):
        ask()
    assert experiment.seen.logs() == "[second]\ntwo\nwithin\n"


@pytest.mark.parametrize("error", [AssertionError("own"), OSError("no disk"), KeyError("n/a")])
def test_what_a_step_breaks_off_with(error: Exception) -> None:
    """An assertion of the suite's own, or what the host does, is not the backend's failure."""
    seen = Seen()

    def act() -> None:
        raise error

    assert not seen.step(act)
    blames_the_backend = isinstance(error, KeyError)
    with pytest.raises(Violation if blames_the_backend else type(error)) as raised:
        seen["never"]
    assert (raised.value is error) is not blames_the_backend
