"""Make a bundle: resolve as for a runtime, and gather wheels instead of installing them."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.runtime.bundle import Bundle, oldest_glibc
from pytest_vllm_triton.runtime.create import explained, first_that_works
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.host import GLIBC, check_platform
from pytest_vllm_triton.runtime.interpreter import Interpreter, find_interpreters
from pytest_vllm_triton.runtime.pieces import PieceWriter, StoredFile
from pytest_vllm_triton.runtime.recipe import CPU, Accelerator, check_vllm_version
from pytest_vllm_triton.runtime.source import Index

STEPS = 5


def make_bundle(
    output: Path,
    vllm_version: str | None = None,
    progress: Progress = silent,
    *,
    accelerator: Accelerator = CPU,
    python: str | None = None,
    host_torch: bool = False,
    piece_size: int | None = None,
) -> Bundle:
    """Gather all that a runtime is made of in a folder.

    Args:
        output: the folder; it must not hold anything yet.
        vllm_version: default: the accelerator's.
        progress: hears what is being done.
        accelerator: the runtime's.
        python: the Python to make it with; it is for hosts that have the same minor version.
        host_torch: leave out PyTorch and what belongs to it, for hosts that have it.
        piece_size: the largest file, in bytes; None: the wheels as they are.

    Raises:
        UserError: the folder is not empty, or there is no such vLLM.
        RuntimeUnavailable: the packages cannot be had.
    """
    version = check_vllm_version(vllm_version or accelerator.default_version, accelerator)
    check_platform()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(f"{output} is not empty: name a new folder for the bundle.")
    except OSError as error:
        raise UserError(f"The bundle cannot be kept in {output}: {error}.") from None
    index = Index(accelerator, version)

    def make(interpreter: Interpreter) -> Bundle:
        # In the result's own folder: several gigabytes would be copied from another disk.
        with tempfile.TemporaryDirectory(prefix=".making-", dir=output) as scratch:
            environment = Environment(Path(scratch), interpreter)
            return _make(index, environment, output.absolute(), progress, host_torch, piece_size)

    return first_that_works(find_interpreters(python), progress, make)


def _make(
    index: Index,
    environment: Environment,
    output: Path,
    progress: Progress,
    host_torch: bool,
    piece_size: int | None,
) -> Bundle:
    number = 0

    @contextlib.contextmanager
    def step(title: str) -> Iterator[Progress]:
        nonlocal number
        number += 1
        label = f"[{number}/{STEPS}] {title}"
        progress(label)
        with explained(title):
            yield lambda what: progress(f"{label}: {what}")

    with step("making the virtual environment"):
        environment.make()
    with step("looking for the packages") as at_work:
        index.reach(environment, at_work)
    with step("resolving vLLM's dependencies") as at_work:
        resolution = index.resolve(environment, at_work)
    pins = resolution.pins(resolution.torch_and_its_own() if host_torch else ())
    wheels_folder = environment.root / "wheels"
    with step("gathering the wheels") as at_work:
        index.pip(environment).build(pins, wheels_folder, at_work)
    with step("writing the bundle"):
        wheels = sorted(wheels_folder.glob("*.whl"))
        bundle = Bundle(
            folder=output,
            accelerator=index.accelerator,
            vllm_version=index.vllm_version,
            python=environment.interpreter.minor,
            glibc=oldest_glibc((wheel.name for wheel in wheels), GLIBC),
            host_torch=resolution.torch_specifier() if host_torch else "",
            pins=tuple(pins),
            in_pieces=piece_size is not None,
            unpacked_size=sum(map(_unpacked_size, wheels)),
            files=tuple(_store(wheels, output, piece_size)),
        )
        bundle.save()
    return bundle


def _store(wheels: Sequence[Path], output: Path, piece_size: int | None) -> list[StoredFile]:
    if piece_size is None:
        return [StoredFile.of(wheel.rename(output / wheel.name)) for wheel in wheels]
    stream = PieceWriter(output, piece_size)
    with stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for wheel in wheels:
            archive.add(wheel, wheel.name)
    return stream.pieces


def _unpacked_size(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as content:
        return sum(entry.file_size for entry in content.infolist())
