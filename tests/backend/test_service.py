"""Loading a model: the order in which things are made, and that a failure takes them back."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import triton_python_backend_utils as pb_utils
from vllm_triton_backend import service
from vllm_triton_backend.errors import Code, LoadError, RequestError
from vllm_triton_backend.event_loop import EventLoop
from vllm_triton_backend.parameters import Parameters
from vllm_triton_backend.service import Service
from vllm_triton_backend.sharing import SingleInstance

#: The end of an engine, in order, when the load fails after its boot.
TAKEN_BACK = ["engine shut down", "share closed", "loop stopped", "watchdog closed"]


@dataclasses.dataclass
class FakeParams:
    temperature: float = 1.0


@dataclasses.dataclass
class FakePoolingParams:
    dimensions: int | None = None


class Failure(Exception):
    pass


def fail(*_: Any, **__: Any) -> Any:
    raise Failure("a thread cannot be started")


class Load:
    """A model that can be loaded outside Triton, and the notes of what its load did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "model.json").write_text('{"model": "m"}', encoding="utf-8")
        self.notes: list[str] = []
        self.parameters = {"GPU_DEVICE_IDS": "1"}
        self.shutdown: Callable[[], None] = lambda: None
        #: Seconds that other instances of the engine were given at the end.
        self.for_others = 0.0
        load = self
        note = self.notes.append

        class FakeVllm:
            version = "0"
            sampling_params, pooling_params = FakeParams, FakePoolingParams

            def __init__(self) -> None:
                note(f"vLLM imported with GPU {os.environ['CUDA_VISIBLE_DEVICES']}")

            async def start_engine(self, *_: Any) -> Any:
                note("engine booted")
                limits = SimpleNamespace(max_model_len=100)
                return SimpleNamespace(
                    alive=True, shutdown=shut_down, limits=limits, runs_on_cpu=False
                )

        class NotedLoop(EventLoop):
            def stop(self, timeout: float) -> None:
                super().stop(timeout)
                note("loop stopped")

        class NotedShare(SingleInstance):
            def close(self, timeout: float) -> None:
                load.for_others = timeout
                note("share closed")

        class FakeWatchdog:
            def __init__(self, _: Any) -> None:
                note("watchdog started")

            def close(self) -> None:
                note("watchdog closed")

        class FakeExporter:
            def __init__(self, *_: Any) -> None:
                note("metrics made")

            def close(self) -> None:
                note("metrics closed")

        def shut_down() -> None:
            note("engine shut down")
            self.shutdown()

        replacements = {
            "Vllm": FakeVllm,
            "Watchdog": FakeWatchdog,
            "EventLoop": NotedLoop,
            "SingleInstance": NotedShare,
            "MetricsExporter": FakeExporter,
            "stat_logger_factory": lambda record: record,
            # The real one ends the interpreter, which is pytest's.
            "atexit": SimpleNamespace(register=lambda _: note("exit prepared")),
            "gc": SimpleNamespace(collect=lambda: None, freeze=lambda: note("objects frozen")),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(service, name, replacement)
        monkeypatch.setattr(pb_utils, "get_model_dir", lambda: str(folder), raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")

    def run(self) -> Service:
        """Load it."""
        tensors = {"input": [{"name": "text_input"}], "output": [{"name": "text_output"}]}
        model_config = {
            **tensors,
            "model_transaction_policy": {"decoupled": True},
            "parameters": {key: {"string_value": text} for key, text in self.parameters.items()},
        }
        arguments = {
            "model_config": json.dumps(model_config),
            "model_name": "m",
            "model_version": "1",
            "model_instance_name": "m_0",
            "model_instance_kind": "MODEL",
        }
        return Service.load(arguments)


@pytest.mark.parametrize(
    ("given", "on_cpu", "seconds"), [("", False, 1e-3), ("", True, 2e-3), ("0", True, 0.0)]
)
def test_how_long_streams_of_a_crowd_pause(given: str, on_cpu: bool, seconds: float) -> None:
    engine: Any = SimpleNamespace(runs_on_cpu=on_cpu)
    model_config = {"parameters": {"STREAM_PAUSE_MICROSECONDS": {"string_value": given}}}
    parameters = Parameters.from_model_config(model_config)
    assert service._pause_per_request(parameters, engine) == seconds


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    return Load(tmp_path, monkeypatch)


def test_what_is_made_when(load: Load) -> None:
    threads = set(threading.enumerate())
    loaded = load.run()
    try:
        assert load.notes == [
            "exit prepared",
            "vLLM imported with GPU 5",
            "watchdog started",
            "engine booted",
            "objects frozen",
        ]
        load.notes.clear()
    finally:
        loaded.close()
    assert load.notes == ["share closed", "engine shut down", "loop stopped", "watchdog closed"]
    assert load.for_others > 20, "another instance may need all of DRAIN_TIMEOUT_SECONDS"
    assert set(threading.enumerate()) <= threads


def test_a_failure_after_the_boot_ends_the_engine(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set(threading.enumerate())
    monkeypatch.setattr(service, "RequestRunner", fail)
    with pytest.raises(Failure, match=r"^a thread cannot be started$"):
        load.run()
    assert load.notes[-5:] == ["engine booted", *TAKEN_BACK]
    assert set(threading.enumerate()) <= threads


def test_a_failure_at_the_last_step_ends_what_was_made_for_requests(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set(threading.enumerate())
    load.parameters["REPORT_CUSTOM_METRICS"] = "true"
    monkeypatch.setattr(service, "ServingInstance", fail)
    with pytest.raises(Failure):
        load.run()
    assert load.notes[-7:] == ["engine booted", "metrics made", "metrics closed", *TAKEN_BACK]
    assert set(threading.enumerate()) <= threads


def test_the_first_failure_is_told_whatever_fails_afterwards(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise LoadError("the reason")

    load.shutdown = fail
    monkeypatch.setattr(service, "ServingInstance", refuse)
    with pytest.raises(pb_utils.TritonModelException, match=r"^the reason$"):
        load.run()
    assert load.notes[-4:] == TAKEN_BACK


def test_a_vllm_whose_parameters_cannot_be_read_boots_nothing(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePoolingParams, "__annotations__", {"task": "PoolingTask"})
    with pytest.raises(NameError, match="PoolingTask"):
        load.run()
    assert load.notes == ["exit prepared", "vLLM imported with GPU 5"]


@pytest.mark.parametrize(
    ("count", "most", "words"),
    [(1, 0, "does not take images"), (3, 2, "takes at most 2 images, got 3")],
)
def test_images_that_are_too_many_are_not_decoded(count: int, most: int, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        service._check_images(count, most, "m")
    assert caught.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(("count", "most"), [(0, 0), (2, 2), (9, None)])
def test_images_that_vllm_may_see(count: int, most: int | None) -> None:
    service._check_images(count, most, "m")
