"""Make a runtime: step by step, resumable, in a folder that is renamed when all is done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.paths import HOME_VARIABLE
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.bundle import UNPACKED, Bundle
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.host import check_platform
from pytest_vllm_triton.runtime.host_torch import HostTorch, find_host_torch
from pytest_vllm_triton.runtime.interpreter import Interpreter, find_interpreters
from pytest_vllm_triton.runtime.pip import FILES as PIPS
from pytest_vllm_triton.runtime.pip import NotForThisPython, PipFailed, explain
from pytest_vllm_triton.runtime.recipe import CPU, Accelerator
from pytest_vllm_triton.runtime.self_check import self_check
from pytest_vllm_triton.runtime.source import PINS, Index, Source, Step
from pytest_vllm_triton.runtime.store import (
    PARTIAL_SUFFIX,
    Runtime,
    find_runtime,
    folder_size,
    runtimes_folder,
)
from pytest_vllm_triton.supervision.client import FILES as SUPERVISORS

T = TypeVar("T")

LOCK_POLL_SECONDS = 0.5
#: In a runtime that is being made: the titles of the steps that are done.
_STEPS = "steps.json"


def create_runtime(
    vllm_version: str | None = None,
    progress: Progress = silent,
    *,
    accelerator: Accelerator = CPU,
    python: str | None = None,
) -> Runtime:
    """The runtime with this vLLM (default: the accelerator's): the finished one, or a new one.

    Raises RuntimeUnavailable where it cannot be made. An interrupted creation is resumed.
    """
    version = vllm_version or accelerator.default_version
    index = Index(accelerator, recipe.check_vllm_version(version, accelerator))
    if python is None:
        found = find_runtime(version, accelerator)
        if found is not None:
            return found
    check_platform()

    def create(interpreter: Interpreter) -> Runtime:
        return _create(index, interpreter, None, progress)

    _make_folder(runtimes_folder())
    return first_that_works(find_interpreters(python), progress, create)


def install_runtime(
    folder: Path, progress: Progress = silent, *, python: str | None = None
) -> Runtime:
    """The runtime whose packages the bundle in this folder holds: the finished one, or a new one.

    No package index is asked. An interrupted installation is resumed.

    Args:
        folder: the bundle's.
        progress: hears what is being done.
        python: the Python to make it from, and whose PyTorch is used if the bundle has none.

    Raises:
        UserError: there is no bundle, or a file of it is missing or damaged.
        RuntimeUnavailable: it is not for this host.
    """
    bundle = Bundle.at(folder)
    if python is None:
        found = find_runtime(bundle.vllm_version, bundle.accelerator)
        if found is not None:
            return found
    check_platform(bundle.glibc)
    there = list(find_interpreters(python))
    suitable = [each for each in there if each.minor == bundle.python]
    if not suitable:
        raise RuntimeUnavailable(
            f"The bundle in {folder} is for Python {bundle.python}, and what this host has is "
            f"{', '.join(dict.fromkeys(each.version for each in there))}. Install Python "
            f"{bundle.python} with its shared library, or make a bundle for another one with "
            "'pytest-vllm-triton runtime bundle --python PATH'."
        )
    host_torch = None
    if bundle.host_torch:
        host_torch = find_host_torch(bundle.host_torch, bundle.python, python)
    _make_folder(runtimes_folder())
    return _create(bundle, suitable[0], host_torch, progress)


def first_that_works(
    interpreters: Iterable[Interpreter], progress: Progress, make: Callable[[Interpreter], T]
) -> T:
    """What is made with the first Python for which pip's sources have all packages.

    Raises:
        RuntimeUnavailable: there is none; it says what the first one lacks.
    """
    tried: dict[str, RuntimeUnavailable] = {}
    for interpreter in interpreters:
        if interpreter.minor in tried:
            continue
        if tried:
            progress(f"trying Python {interpreter.version} instead")
        try:
            return make(interpreter)
        except NotForThisPython as failure:
            tried[interpreter.minor] = failure
    raise next(iter(tried.values()))


@contextlib.contextmanager
def explained(title: str) -> Iterator[None]:
    """Raises RuntimeUnavailable, and says why, where this step fails for the host's reasons."""
    try:
        yield
    except PipFailed as failure:
        raise explain(failure, title) from None
    except OSError as error:
        raise RuntimeUnavailable(
            f"The embedded server runtime: {title} failed. {error}. "
            "Run it again: it goes on where it stopped."
        ) from error


def _create(
    source: Source, interpreter: Interpreter, host_torch: HostTorch | None, progress: Progress
) -> Runtime:
    from filelock import FileLock, Timeout

    key = recipe.runtime_key(
        source.vllm_version,
        interpreter.version,
        str(interpreter.prefix),
        source.accelerator,
        host_torch.identity if host_torch else (),
    )
    lock = FileLock(runtimes_folder() / f"{key}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that makes {key}")
        held = lock.acquire(poll_interval=LOCK_POLL_SECONDS)
    with held:
        creation = _Creation(key, source, interpreter, host_torch, runtimes_folder(), progress)
        try:
            return creation.run()
        except NotForThisPython:
            shutil.rmtree(creation.root)  # there is nothing to go on with
            raise


@dataclass
class _Creation:
    key: str
    source: Source
    interpreter: Interpreter
    host_torch: HostTorch | None
    folder: Path
    progress: Progress
    done: set[str] = field(default_factory=set)

    @property
    def final(self) -> Path:
        return self.folder / self.key

    @property
    def root(self) -> Path:
        return self.folder / (self.key + PARTIAL_SUFFIX)

    @property
    def environment(self) -> Environment:
        return Environment(self.root, self.interpreter)

    @property
    def site_packages(self) -> Path:
        return self.environment.site_packages

    def run(self) -> Runtime:
        finished = self._finished()
        if finished is not None:
            return finished
        self.root.mkdir(exist_ok=True)
        self._check_disk()
        self.done = self._recorded()
        steps = self.steps()
        for number, (title, step) in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {title}"
            if title in self.done:
                continue
            self.progress(label)
            with explained(title):
                step(self.environment, self._under(label))
            self._record(title)
        return self.finish()

    def steps(self) -> list[Step]:
        """Each may find its work half done."""
        return [
            ("making the virtual environment", lambda environment, _: environment.make()),
            *self.source.steps(),
            ("installing the packages", self.install),
            *self._host_steps(),
            ("laying out Triton", self.lay_out_triton),
            ("compiling to bytecode", self.compile),
            ("checking the runtime", self.check),
        ]

    def _host_steps(self) -> list[Step]:
        if self.host_torch is None:
            return []
        link_into = self.host_torch.link_into
        # After pip is done: it must not take the host's packages for the environment's.
        return [("linking the host's PyTorch", lambda environment, _: link_into(environment))]

    # state

    def _finished(self) -> Runtime | None:
        try:
            runtime = Runtime.at(self.final)
        except (OSError, ValueError, KeyError):
            runtime = None
        if runtime is not None and not runtime.broken():
            return runtime
        if self.final.exists():
            shutil.rmtree(self.final)  # it cannot work, and stands in the way of one that can
        return None

    def _recorded(self) -> set[str]:
        try:
            recorded = set(json.loads((self.root / _STEPS).read_text()))
        except (OSError, ValueError):
            return set()
        if recorded:
            self.progress("going on with an interrupted creation")
        return recorded

    def _record(self, title: str) -> None:
        self.done.add(title)
        temporary = self.root / f"{_STEPS}.new"
        temporary.write_text(json.dumps(sorted(self.done)))
        temporary.replace(self.root / _STEPS)

    def _check_disk(self) -> None:
        present = folder_size(self.root) / 2**30
        needed = max(0.5, self.source.disk_gib - present)
        free = shutil.disk_usage(self.root).free / 2**30
        if free < needed:
            raise RuntimeUnavailable(
                f"The embedded server runtime needs {needed:.1f} GiB more in {self.folder}, and "
                f"{free:.1f} GiB are free there. Make room, or name a folder on another disk with "
                f"{HOME_VARIABLE}, and run it again."
            )

    # steps

    def install(self, environment: Environment, progress: Progress) -> None:
        pins: list[str] = json.loads((self.root / PINS).read_text())
        self._forget_half_installed()
        told = -1

        def tell_count() -> None:
            nonlocal told
            count = len(list(self.site_packages.glob("*.dist-info/INSTALLER")))
            if count not in (told, 0):
                told = count
                progress(f"{count} of {len(pins)} installed")

        self.source.pip(environment).install(pins, progress, tell_count)

    def lay_out_triton(self, *_: object) -> None:
        triton = self.site_packages / "pytriton" / "tritonserver"
        backend = self.root / "backends" / "python"
        stub = triton / "python_backend_stubs" / self.interpreter.minor
        if backend.exists():
            shutil.rmtree(backend)
        shutil.copytree(
            triton / "backends" / "python", backend, ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(stub, backend, dirs_exist_ok=True)
        for binary in (triton / "bin" / "tritonserver", backend / "triton_python_backend_stub"):
            binary.chmod(binary.stat().st_mode | 0o111)
        # Only this library is to be found there, not whatever else that Python's folder holds.
        libraries = self.root / "libpython"
        libraries.mkdir(exist_ok=True)
        link = libraries / self.interpreter.library.name
        link.unlink(missing_ok=True)
        link.symlink_to(self.interpreter.library)

    def compile(self, environment: Environment, _: Progress) -> None:
        """Compile for the folder's final name, so that tracebacks do not show the partial one."""
        subprocess.run(
            [
                *[str(environment.python), "-I", "-m", "compileall", "-q", "-q", "-j", "0"],
                *["-s", str(self.root), "-p", str(self.final)],
                *["-x", r"/tests?/"],  # nobody imports the packages' own tests
                *[str(self.site_packages), str(self.root / "backends")],
            ],
            # Some packages carry files for other Pythons, on which compileall fails: no matter.
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def check(self, *_: object) -> None:
        runtime = Runtime(
            key=self.key,
            root=self.root,
            python=self.environment.python,
            tritonserver=self.site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
            backends=self.root / "backends",
            triton_version=recipe.TRITON_VERSION,
            vllm_version=self.source.vllm_version,
            python_version=self.interpreter.version,
            base_prefix=self.interpreter.prefix,
            accelerator=self.source.accelerator,
            host_torch=self.host_torch.identity if self.host_torch else (),
        )
        runtime.write_manifest()
        self_check(runtime)

    def finish(self) -> Runtime:
        self._forget_partial_path()
        for scratch in (_STEPS, *PIPS, *SUPERVISORS):
            (self.root / scratch).unlink(missing_ok=True)
        if (self.root / UNPACKED).exists():
            shutil.rmtree(self.root / UNPACKED)
        self.root.replace(self.final)
        return Runtime.at(self.final)

    # details

    def _under(self, label: str) -> Progress:
        return lambda what: self.progress(f"{label}: {what}")

    def _forget_half_installed(self) -> None:
        """Let pip install anew what an interruption left incomplete.

        pip takes a distribution for installed as soon as its metadata is there; it writes
        INSTALLER when all files are.
        """
        for metadata in self.site_packages.glob("*.dist-info"):
            if not (metadata / "INSTALLER").is_file():
                shutil.rmtree(metadata)

    def _forget_partial_path(self) -> None:
        """Rewrite the few text files that name the folder: scripts and pyvenv.cfg."""
        venv = self.root / "venv"
        for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir()]:
            if path.is_symlink() or not path.is_file():
                continue
            content = path.read_bytes()
            changed = content.replace(os.fsencode(self.root), os.fsencode(self.final))
            if changed != content:
                path.write_bytes(changed)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
    except OSError as error:
        raise RuntimeUnavailable(
            f"The embedded server runtime cannot be kept in {folder}: {error}. Name another folder "
            f"with {HOME_VARIABLE}."
        ) from error
