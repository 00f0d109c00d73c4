"""The NVIDIA GPUs of this host, and what processes hold of their memory, as NVML tells it.

NVML counts GPUs in the order of their PCI addresses and knows nothing of CUDA_VISIBLE_DEVICES. CUDA
does the same with equal GPUs, or with CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class MemoryUnknown(Exception):
    """The driver does not tell which process holds how much memory (MIG, some virtual machines, or
    by process ids that are not those of this container)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: NVML's number of it.
        uuid: such as GPU-5f3c….
        memory: bytes in all.
    """

    index: int
    uuid: str
    name: str
    memory: int

    def free_memory(self) -> int:
        """Bytes that no process holds now."""
        with _nvml() as nvml:
            if nvml is None:
                return 0
            handle = nvml.nvmlDeviceGetHandleByIndex(self.index)
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).free)


def host_has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this host shows an NVIDIA GPU, whatever can use it."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def list_gpus() -> tuple[Gpu, ...]:
    """All GPUs of this host, by index; none where there is no driver."""
    with _nvml() as nvml:
        return () if nvml is None else tuple(_gpus(nvml))


def visible_gpus(setting: str | None, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of the GPUs that a CUDA program sees, in the order in which it counts them.

    Args:
        setting: the program's CUDA_VISIBLE_DEVICES; None: it is not set.
        gpus: those that there are for it, in the order in which the setting counts them.
    """
    if setting is None:
        return tuple(gpus)
    seen: list[Gpu] = []
    for name in (part.strip() for part in setting.split(",")):
        found = [
            gpu
            for number, gpu in enumerate(gpus)
            if name == str(number) or (name and gpu.uuid.startswith(name))
        ]
        if len(found) != 1 or found[0] in seen:
            break  # CUDA sees nothing from the first name on that means nothing to it
        seen += found
    return tuple(seen)


def memory_of(pids: Iterable[int], gpus: Iterable[Gpu]) -> list[int]:
    """Bytes that these processes of this host hold of each GPU.

    Raises:
        MemoryUnknown: the driver does not tell.
    """
    wanted = set(pids)
    with _nvml() as nvml:
        if nvml is None:
            return [0 for _ in gpus]
        return [
            sum(size for pid, size in _by_process(nvml, gpu).items() if pid in wanted)
            for gpu in gpus
        ]


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML library, initialized; None where it or the driver is missing."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _gpus(nvml: Any) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = (
            text.decode() if isinstance(text, bytes) else text
            for text in (nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle))
        )
        yield Gpu(index, uuid, name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _by_process(nvml: Any, gpu: Gpu) -> Mapping[int, int]:
    handle = nvml.nvmlDeviceGetHandleByIndex(gpu.index)
    held = {}
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError as error:
        raise MemoryUnknown(f"the driver of {gpu.name} lists no processes: {error}") from error
    for process in processes:
        if process.usedGpuMemory is None:
            raise MemoryUnknown(f"the driver of {gpu.name} does not tell memory by process")
        held[int(process.pid)] = int(process.usedGpuMemory)
    return held
