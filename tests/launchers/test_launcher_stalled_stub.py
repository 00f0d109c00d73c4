"""A stub that stands still for a moment while it loads hangs Triton; the suite loads again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny_servers import ECHO, Launch, model, stalling_model
from waiting import eventually

from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers import stalled_stub
from pytest_vllm_triton.launchers.host_proc import waited_for
from pytest_vllm_triton.launchers.readiness import LoadStumbled


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalled_stub, "PATIENCE_SECONDS", 2.0)


def test_a_load_that_triton_is_stuck_in_is_asked_for_again(launch: Launch, tmp_path: Path) -> None:
    spec = stalling_model(tmp_path / "stalled")
    server = launch(model("echo"))
    repository = ModelRepository(server)
    repository.add(spec)
    repository.load(spec.name).ok()
    assert (tmp_path / "stalled").exists()
    assert repository.is_ready(spec.name)


def test_a_boot_that_triton_is_stuck_in_is_told_apart(launch: Launch, tmp_path: Path) -> None:
    with pytest.raises(ServerFailed) as failure:
        launch(stalling_model(tmp_path / "stalled"))
    assert isinstance(failure.value, LoadStumbled)


def test_an_unload_that_takes_its_time_is_none(launch: Launch) -> None:
    """The server waits for that stub, too, while another model loads."""
    slow = ECHO + "\n    def finalize(self):\n        import time; time.sleep(6)\n"
    server = launch(model("slow", slow))
    repository = ModelRepository(server)
    repository.unload("slow")
    pid = server.host_pid()
    assert pid is not None
    with stalled_stub.StalledStubWatch(server) as watch:
        assert eventually(lambda: waited_for(pid))
        time.sleep(2 * stalled_stub.PATIENCE_SECONDS)
        assert waited_for(pid)
    assert not watch.ended_one
