"""Workers that share few cores load one model after the other; threads of one worker together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_vllm_triton.launchers import load_slots
from pytest_vllm_triton.launchers.attach import AttachedHandle
from pytest_vllm_triton.launchers.base import Endpoints
from pytest_vllm_triton.launchers.load_slots import LoadSlots

HOLDER = """
import sys, time
from pathlib import Path
from pytest_vllm_triton.launchers.load_slots import LoadSlots

with LoadSlots(Path(sys.argv[1]), worker=int(sys.argv[2]), workers=2).acquire():
    print("mine", flush=True)
    sys.stdin.read()
print("given back", flush=True)
"""


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def holder(folder: Path, worker: int) -> subprocess.Popen[str]:
    code = HOLDER.replace("import sys", "import os, sys", 1).replace(
        "\nwith", "\nos.sched_getaffinity = lambda pid: {0, 1}\nwith", 1
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(worker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("two_cores")
def test_second_worker_waits_for_the_first(tmp_path: Path) -> None:
    with LoadSlots(tmp_path, worker=0, workers=2).acquire():
        other = holder(tmp_path, worker=1)
        assert other.stdout is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(other.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        reader.join(3)
        assert said == []
    reader.join(30)
    assert said == ["mine\n"]
    assert other.communicate()[0] == "given back\n"


@pytest.mark.usefixtures("two_cores")
def test_slot_of_a_killed_worker_is_free(tmp_path: Path) -> None:
    other = holder(tmp_path, worker=0)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    other.kill()
    other.communicate()
    with LoadSlots(tmp_path, worker=1, workers=2).acquire():
        pass


@pytest.mark.usefixtures("two_cores")
def test_threads_of_a_worker_load_together(tmp_path: Path) -> None:
    mine = LoadSlots(tmp_path, worker=0, workers=2)
    met = threading.Barrier(2)

    def load() -> None:
        with mine.acquire():
            met.wait(30)

    thread = threading.Thread(target=load)
    thread.start()
    load()
    thread.join()
    assert not met.broken


@pytest.mark.usefixtures("two_cores")
def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_slots, "_PATIENCE_SECONDS", 0.2)
    other = holder(tmp_path, worker=0)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with LoadSlots(tmp_path, worker=1, workers=2).acquire():
        pass
    assert other.communicate()[0] == "given back\n"


@pytest.mark.parametrize(("cores", "workers"), [(2, 1), (4, 2), (16, 6)])
def test_no_slots_where_there_are_cores_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    for worker in range(workers):
        LoadSlots(tmp_path / "none", worker, workers)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("boot", "load"), [(900.0, 900.0), (5.0, AttachedHandle.load_seconds)])
def test_a_load_may_take_as_long_as_a_boot(tmp_path: Path, boot: float, load: float) -> None:
    server = AttachedHandle(Endpoints("http://localhost:1", "localhost:2"))
    slots = LoadSlots(tmp_path, worker=0, workers=1)
    server.share_loads(slots, boot)
    assert server.load_slots is slots
    assert server.load_seconds == load
