"""Find a Python that Triton's python backend can embed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime.recipe import PYTHON_VERSIONS

_PROBE = """
import json, sys, sysconfig
try:
    import venv
except ImportError:
    venv = None
get = sysconfig.get_config_var
print(json.dumps({
    "version": list(sys.version_info[:3]), "implementation": sys.implementation.name,
    "prefix": sys.base_prefix, "shared": bool(get("Py_ENABLE_SHARED")), "libdir": get("LIBDIR"),
    "multiarch": get("MULTIARCH"), "library": get("INSTSONAME"), "venv": venv is not None,
}))
"""
PROBE_SECONDS = 20


@dataclass(frozen=True)
class Interpreter:
    """A Python that can be embedded.

    Attributes:
        executable: what to run.
        version: such as 3.11.7.
        prefix: where it is installed: two builds of one version are not the same.
        library: its shared library; the stub needs the one of exactly this build.
    """

    executable: Path
    version: str
    prefix: Path
    library: Path

    @property
    def minor(self) -> str:
        """Such as 3.11."""
        return self.version.rpartition(".")[0]


class Unsuitable(Exception):
    """Why an interpreter cannot be used."""

    def __init__(self, reason: str, *, lacks_library: bool = False) -> None:
        super().__init__(reason)
        self.lacks_library = lacks_library


def find_interpreters(wanted: str | None = None) -> Iterator[Interpreter]:
    """The suitable Pythons of this host, the likeliest first, or the one that is wanted.

    Raises RuntimeUnavailable where there is none.
    """
    found = False
    looked_at: list[str] = []
    lacks_library = False
    for candidate in [Path(wanted)] if wanted is not None else _candidates():
        try:
            interpreter = probe(candidate)
        except Unsuitable as unsuitable:
            lacks_library |= unsuitable.lacks_library
            looked_at.append(f"{candidate} ({unsuitable})")
        else:
            found = True
            yield interpreter
    if not found:
        raise _none(looked_at, lacks_library, wanted)


def probe(executable: Path) -> Interpreter:
    """What this Python is; raises Unsuitable."""
    try:
        answer = subprocess.run(
            [str(executable), "-I", "-c", _PROBE],
            capture_output=True,
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        facts = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Unsuitable("does not run") from error
    version = ".".join(str(part) for part in facts["version"])
    if facts["implementation"] != "cpython" or tuple(facts["version"][:2]) not in PYTHON_VERSIONS:
        raise Unsuitable(f"is {facts['implementation']} {version}")
    if not facts["shared"]:
        raise Unsuitable(f"{version}, built without a shared library", lacks_library=True)
    prefix = Path(facts["prefix"])
    # A Python that was moved after its build, as uv's are, still names the builder's folder.
    folders = [Path(facts["libdir"]), prefix / "lib"]
    folders += [folder / facts["multiarch"] for folder in folders if facts["multiarch"]]
    libraries = [folder / facts["library"] for folder in folders]
    library = next((library for library in libraries if library.is_file()), None)
    if library is None:
        raise Unsuitable(f"{version}, but its {facts['library']} is missing", lacks_library=True)
    if not facts["venv"]:
        raise Unsuitable(f"{version}, without the venv module")
    return Interpreter(Path(executable), version, prefix, library)


def _candidates() -> Iterator[Path]:
    """Every Python worth a look, the likeliest first, none twice."""
    seen: set[Path] = set()
    for path in _places():
        resolved = Path(os.path.realpath(path))
        if path.is_file() and os.access(path, os.X_OK) and resolved not in seen:
            seen.add(resolved)
            yield path


def _places() -> Iterator[Path]:
    names = [f"python{major}.{minor}" for major, minor in PYTHON_VERSIONS]
    yield Path(getattr(sys, "_base_executable", "") or sys.executable)
    for name in names:
        found = shutil.which(name)
        if found:
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for folder in (pyenv / "versions", uv):
        for name in names:
            yield from sorted(folder.glob(f"*/bin/{name}"), reverse=True)
    for folder in (Path("/usr/local/bin"), Path("/usr/bin")):
        yield from (folder / name for name in names)


def _none(looked_at: list[str], lacks_library: bool, wanted: str | None) -> RuntimeUnavailable:
    versions = " or ".join(f"{major}.{minor}" for major, minor in reversed(PYTHON_VERSIONS))
    if wanted is not None:
        what = f"{wanted} cannot carry the embedded server runtime."
    elif lacks_library:
        what = f"No Python {versions} of this host comes with its shared library (libpython)."
    else:
        what = f"No Python {versions} was found on this host."
    return RuntimeUnavailable(
        f"{what} Triton's python backend embeds Python, so the runtime needs CPython {versions} "
        f"with libpython of the same build. Looked at: {'; '.join(looked_at) or 'nothing'}. "
        "Install one (a distribution's python3.11 with its libpython package, 'uv python install "
        "3.12', or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared), or name one with "
        "'pytest-vllm-triton runtime create --python PATH'."
    )
