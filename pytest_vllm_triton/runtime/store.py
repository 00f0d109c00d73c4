"""Where finished runtimes lie, and what one is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_triton import __version__
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.runtime.recipe import (
    ACCELERATORS,
    CPU,
    Accelerator,
    check_vllm_version,
    runtime_key,
)
from pytest_vllm_triton.server_environment import inherited

MANIFEST = "runtime.json"
PARTIAL_SUFFIX = ".partial"
_DOOMED = ".removed-"
#: In a runtime that uses the host's PyTorch: links to it.
HOST_LINKS = "host"


@dataclass(frozen=True)
class Runtime:
    """A finished runtime.

    Attributes:
        key: its name, also of its folder.
        root: its folder.
        python: the Python inside: it imports vLLM.
        tritonserver: the server's binary.
        backends: a folder that holds ``python/``, Triton's python backend with the right stub.
        triton_version: such as 2.51.0.
        vllm_version: such as 0.32.0.
        python_version: such as 3.11.7.
        base_prefix: the installation of Python that it was made from, and needs.
        accelerator: what it computes on.
        host_torch: version and folder of the host's PyTorch, if it uses that.
    """

    key: str
    root: Path
    python: Path
    tritonserver: Path
    backends: Path
    triton_version: str
    vllm_version: str
    python_version: str
    base_prefix: Path
    accelerator: Accelerator = CPU
    host_torch: tuple[str, ...] = ()

    @classmethod
    def at(cls, root: Path) -> Runtime:
        """The runtime in this folder; raises OSError, ValueError or KeyError if there is none."""
        facts = json.loads((root / MANIFEST).read_text())
        return cls(
            key=facts["key"],
            root=root,
            python=root / "venv" / "bin" / "python3",
            tritonserver=root / facts["tritonserver"],
            backends=root / "backends",
            triton_version=facts["triton"],
            vllm_version=facts["vllm"],
            python_version=facts["python"],
            base_prefix=Path(facts["base_prefix"]),
            # Not in those of earlier versions, which made nothing else.
            accelerator=ACCELERATORS[facts.get("accelerator", CPU.name)],
            host_torch=tuple(facts.get("host_torch", ())),
        )

    def write_manifest(self) -> None:
        """Write down in its folder what `at` reads there."""
        facts = {
            "key": self.key,
            "triton": self.triton_version,
            "vllm": self.vllm_version,
            "accelerator": self.accelerator.name,
            "host_torch": self.host_torch,
            "python": self.python_version,
            "base_prefix": str(self.base_prefix),
            "tritonserver": str(self.tritonserver.relative_to(self.root)),
            "made_by": __version__,
        }
        (self.root / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")

    def environment(self) -> dict[str, str]:
        """The variables that a server made of this runtime needs beyond ours."""
        libraries = self.root / "venv" / "lib" / f"python{self._minor}" / "site-packages"
        library_path = [str(libraries / "nvidia_pytriton.libs"), str(self.root / "libpython")]
        ours = os.environ.get("LD_LIBRARY_PATH")
        if self.accelerator.needs_gpu and ours:
            library_path.append(ours)  # the GPU's driver may be found by it alone
        return {
            # The stub takes its prefix from the first python3 on PATH.
            "PATH": os.pathsep.join([str(self.root / "venv" / "bin"), os.environ.get("PATH", "")]),
            "LD_LIBRARY_PATH": os.pathsep.join(library_path),
            # The stub starts in the C locale, in which Python cannot read UTF-8 files.
            "LC_ALL": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **self.accelerator.environment,
        }

    def full_environment(self) -> dict[str, str]:
        """All variables of what is run in this runtime by itself, as a server would have them."""
        return {**inherited(), **self.environment()}

    @property
    def _minor(self) -> str:
        return self.python_version.rpartition(".")[0]

    def run_python(
        self,
        script: str,
        args: Sequence[str] = (),
        *,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script (its text) in the runtime's Python, with the server's environment."""
        return subprocess.run(
            [str(self.python), "-c", script, *args],
            env=self.full_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def broken(self) -> str:
        """Why it cannot work any more; "" if it can."""
        for path in (self.python, self.tritonserver, self.backends / "python"):
            if not path.exists():
                return f"{path} is missing"
        if not _links_hold(self.root / "libpython"):
            return f"the Python {self.python_version} that it was made from is gone"
        if self.host_torch and not _links_hold(self.root / HOST_LINKS):
            version, folder = self.host_torch
            return f"the PyTorch {version} that it uses is gone from {folder}"
        return ""

    def size(self) -> int:
        """Bytes on disk."""
        return folder_size(self.root)


def _links_hold(folder: Path) -> bool:
    """Whether the folder has links, all of which lead somewhere."""
    links = list(folder.iterdir()) if folder.is_dir() else []
    return bool(links) and all(link.exists() for link in links)


def runtimes_folder() -> Path:
    return cache_home() / "runtimes"


def list_runtimes() -> list[Runtime]:
    """Every finished runtime, by key, those that are broken too."""
    found = []
    for manifest in sorted(runtimes_folder().glob(f"*/{MANIFEST}")):
        if manifest.parent.suffix == PARTIAL_SUFFIX or manifest.parent.name.startswith(_DOOMED):
            continue
        try:
            found.append(Runtime.at(manifest.parent))
        except (OSError, ValueError, KeyError):
            continue
    return found


def find_runtime(vllm_version: str, accelerator: Accelerator = CPU) -> Runtime | None:
    """A finished runtime of today's recipe with this vLLM that works here, if there is one."""
    check_vllm_version(vllm_version, accelerator)
    for runtime in reversed(list_runtimes()):
        key = runtime_key(
            vllm_version,
            runtime.python_version,
            str(runtime.base_prefix),
            accelerator,
            runtime.host_torch,
        )
        if runtime.key == key and not runtime.broken():
            return runtime
    return None


def list_partial() -> list[Path]:
    """The folders of runtimes whose creation was interrupted."""
    return sorted(runtimes_folder().glob(f"*{PARTIAL_SUFFIX}"))


def remove_runtime(key: str) -> None:
    """Remove a runtime, finished or interrupted; raises UserError if there is none of this key."""
    from filelock import FileLock, Timeout

    folder = runtimes_folder()
    for left in folder.glob(f"{_DOOMED}*"):
        # Of a removal that was interrupted.
        shutil.rmtree(left, ignore_errors=True)
    present = [folder / key, folder / (key + PARTIAL_SUFFIX)]
    present = [path for path in present if path.is_dir() and path.parent == folder]
    if not present:
        known = [path.name for path in folder.glob("triton*") if path.is_dir()]
        raise UserError(
            f"There is no runtime {key!r} in {folder}. There is: {', '.join(known) or 'none'}."
        )
    users = _users(folder / key)
    if users:
        raise UserError(f"The runtime {key} is in use by process {', '.join(map(str, users))}.")
    try:
        with FileLock(folder / f"{key}.lock", timeout=0):
            for path in present:
                # Renamed first: nobody finds a runtime that is half gone.
                doomed = path.rename(folder / f"{_DOOMED}{uuid.uuid4().hex}")
                shutil.rmtree(doomed)
    except Timeout:
        raise UserError(f"The runtime {key} is being made by another process.") from None


def _users(root: Path) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["exe", "cmdline"]):
        words = [process.info["exe"] or "", *(process.info["cmdline"] or ())[:1]]
        if any(word.startswith(f"{root}{os.sep}") for word in words):
            found.append(process.pid)
    return found


def folder_size(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                total += path.stat().st_blocks * 512
    return total
