"""Which GPUs a server sees, what its processes hold of them, and who has them for himself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_triton import gpus
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import Gpu, MemoryUnknown, memory_of, visible_gpus
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.gpu_leases import GpuLeases
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session.state import SETTINGS

FOUR = tuple(Gpu(i, f"GPU-{i}{i}{i}{i}", "H200", 1 << 37) for i in range(4))


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2", [2]),
        ("3, 1", [3, 1]),
        ("GPU-2222", [2]),
        ("GPU-3,0", [3, 0]),
        ("1,9,2", [1]),  # CUDA sees nothing after a name that means nothing
        ("1,1", [1]),
        ("GPU-", []),
    ],
)
def test_gpus_that_a_program_sees(setting: str | None, seen: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(setting, FOUR)] == seen


class Nvml:
    """NVML of a host with two GPUs."""

    class NVMLError(RuntimeError): ...

    def __init__(self, held: dict[int, dict[int, int | None]]) -> None:
        self.held = held

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[Any]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.held[index].items()
        ]


def test_memory_is_that_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({0: {7: 100, 8: 20, 9: 3}, 1: {8: 5}}))
    assert memory_of([7, 8], FOUR[:2]) == [120, 5]
    assert memory_of([8], FOUR[1:2]) == [5]
    assert memory_of([], FOUR[:2]) == [0, 0]


def test_a_driver_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({0: {7: None}}))
    with pytest.raises(MemoryUnknown):
        memory_of([7], FOUR[:1])


def test_a_driver_that_tells_nothing_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotSupported(Nvml):
        def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[Any]:
            raise self.NVMLError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", NotSupported({}))
    with pytest.raises(MemoryUnknown, match="Not Supported"):
        memory_of([7], FOUR[:1])


TRITON, ENGINE = SimpleNamespace(pid=7), SimpleNamespace(pid=8)


def server_on(*gpus: Gpu, processes: tuple[Any, ...] = (TRITON, ENGINE)) -> Any:
    return SimpleNamespace(
        gpus=lambda: gpus,
        processes=lambda: processes,
        _host_pids=lambda some: [process.pid for process in some],
    )


@pytest.mark.parametrize(
    "held",
    [{0: {4007: 100, 4008: 20}, 1: {}}, {0: {7: 0, 8: 0}, 1: {7: 0}}, {0: {}, 1: {}}],
    ids=["host-pids", "zero-bytes", "nobody"],
)
def test_server_of_whose_processes_the_driver_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, held: dict[int, dict[int, int | None]]
) -> None:
    """As where pytest runs in a container, whose process ids are not those of the driver."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(held))
    with pytest.raises(MemoryUnknown, match="none of the server's processes"):
        ServerHandle.gpu_memory(server_on(*FOUR[:2]), [ENGINE])


def test_engine_that_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not yet, or not any more: tritonserver itself does, so the driver's silence is a fact."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({0: {7: 100}, 1: {7: 100, 8: 20}}))
    server = server_on(*FOUR[:2])
    assert ServerHandle.gpu_memory(server, [ENGINE]) == [0, 20]
    assert ServerHandle.gpu_memory(server, [ENGINE], FOUR[:1]) == [0]


def test_other_gpus_than_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({0: {}, 1: {7: 100, 8: 20}}))
    assert ServerHandle.gpu_memory(server_on(FOUR[1]), [TRITON, ENGINE], FOUR[:2]) == [0, 120]


@pytest.mark.parametrize("server", [server_on(), server_on(FOUR[0], processes=())])
def test_server_that_can_hold_nothing(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """It sees no GPU, or has ended."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({0: {9: 5}}))
    assert ServerHandle.gpu_memory(server, [TRITON], FOUR[:1]) == [0]


def test_a_host_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver(Nvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver({}))
    assert gpus.list_gpus() == ()


HOLDER = """
import sys
from pathlib import Path
from pytest_vllm_triton.gpus import Gpu
from pytest_vllm_triton.servers.gpu_leases import GpuLeases
gpus = [Gpu(i, f"GPU-{i}{i}{i}{i}", "H200", 1 << 37) for i in range(4)]
leases = GpuLeases(Path(sys.argv[1]))
print([gpu.index for gpu in leases.acquire(gpus, 2)], flush=True)
sys.stdin.read()
"""


def test_no_two_workers_have_a_gpu(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "[0, 1]\n"
        ours = GpuLeases(tmp_path)
        assert [gpu.index for gpu in ours.acquire(FOUR, 2)] == [2, 3]
        with pytest.raises(UserError, match="of which others use 4"):
            GpuLeases(tmp_path).acquire(FOUR, 2)
        ours.release()
        ours.release()
        assert [gpu.index for gpu in ours.acquire(FOUR, 4)] == [2]
        # Whatever becomes of its holder, a lease is given back.
        holder.kill()
    assert [gpu.index for gpu in GpuLeases(tmp_path).acquire(FOUR, 4)] == [0]


def test_more_workers_than_gpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 workers for 4 GPU\(s\).*--triton-xdist-gpus share"):
        GpuLeases(tmp_path).acquire(FOUR, 5)
    assert len(GpuLeases(tmp_path).acquire(FOUR, 1)) == 4


CONFTEST = """
from pytest_vllm_triton import gpus
gpus.list_gpus = lambda: tuple(gpus.Gpu(i, f"GPU-{i}", "H200", 1) for i in (0, 1))
"""
# As many tests as workers, each of which waits until the other one has its GPUs.
CHECKS = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", [0, 1])
def test_it(vllm_harness, number):
    seen = vllm_harness.provision.launcher.environment.get("CUDA_VISIBLE_DEVICES", "all")
    folder = pathlib.Path(os.environ["NOTES"])
    (folder / f"{number}").write_text(seen)
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("args", "seen"),
    [(("-n2",), {"0", "1"}), (("-n2", "--triton-xdist-gpus=share"), {"all"})],
    ids=["lease", "share"],
)
def test_workers_of_xdist(
    pytester: pytest.Pytester,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    seen: set[str],
) -> None:
    monkeypatch.setenv("PYTEST_VLLM_TRITON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "notes").mkdir()
    server = tmp_path / "tritonserver"
    server.touch(0o755)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(CHECKS)
    result = pytester.runpytest(*args, f"--triton-server-bin={server}", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    assert {path.read_text() for path in (tmp_path / "notes").iterdir()} == seen


def test_too_many_workers_are_refused_at_once(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    server = tmp_path / "tritonserver"
    server.touch(0o755)
    pytester.makeconftest(CONFTEST)
    result = pytester.runpytest("-n3", "--vllm-model=known-answer", f"--triton-server-bin={server}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.errlines)
    assert "3 workers for 2 GPU(s)" in line


@pytest.mark.parametrize(
    ("options", "leases"),
    [
        (["--triton-launcher=process", "--triton-accelerator=cpu"], False),
        (["--triton-launcher=process", "--triton-accelerator=cuda"], True),
        (["--triton-url=http://elsewhere:8000"], False),
    ],
    ids=["cpu", "cuda", "attach"],
)
def test_gpus_are_leased_only_where_servers_use_them(
    pytester: pytest.Pytester,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    leases: bool,
) -> None:
    monkeypatch.setenv("PYTEST_VLLM_TRITON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no tritonserver on it
    monkeypatch.setattr(gpus, "list_gpus", lambda: FOUR)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = pytester.parseconfigure(*options)
    harness = Harness(Provision(config.stash[SETTINGS], lambda: tmp_path, workers=4))
    try:
        assert harness.provision.leased_gpus == ("0" if leases else None)
    finally:
        harness.close()
        config._ensure_unconfigure()
