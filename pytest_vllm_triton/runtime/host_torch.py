"""The host's own PyTorch in a runtime: linked, not copied.

Only PyTorch and what belongs to it is linked, and it comes last on the path: other packages of a
host may be built for a NumPy that Triton's stub cannot read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.interpreter import PROBE_SECONDS
from pytest_vllm_triton.runtime.resolution import TORCHS_OWN
from pytest_vllm_triton.runtime.store import HOST_LINKS

_PROBE = """
import importlib.metadata, json, re, sys
found = {}
for each in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", each.metadata["Name"] or "").lower()
    if re.fullmatch(sys.argv[1], name):
        tops = {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}
        found.setdefault(name, [each.version, str(each.locate_file("")), sorted(tops)])
print(json.dumps(["%d.%d" % sys.version_info[:2], found]))
"""


@dataclass(frozen=True)
class HostTorch:
    """A PyTorch of this host.

    Attributes:
        version: such as 2.11.0+cu130.
        folder: the one that it is imported from.
        entries: the files and folders that make it up, with what belongs to it.
    """

    version: str
    folder: Path
    entries: tuple[Path, ...]

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from another one."""
        return self.version, str(self.folder)

    def link_into(self, environment: Environment) -> None:
        """Let the environment's Python import it, after its own packages."""
        links = environment.root / HOST_LINKS
        if links.exists():
            shutil.rmtree(links)
        links.mkdir()
        for entry in self.entries:
            (links / entry.name).symlink_to(entry)
        # Relative: the runtime's folder is renamed when it is finished.
        relative = os.path.relpath(links, environment.site_packages)
        (environment.site_packages / "host_torch.pth").write_text(relative + "\n")


def find_host_torch(specifier: str, minor: str, python: str | None = None) -> HostTorch:
    """The PyTorch of this host that a vLLM takes.

    Args:
        specifier: the versions that it takes, such as "==2.11.0".
        minor: the version of Python that it has to be installed for, such as 3.12.
        python: the Python that has it; None: pytest's, or the first one on PATH.

    Raises:
        RuntimeUnavailable: there is none.
    """
    pythons = [python] if python else [sys.executable, shutil.which("python3") or ""]
    seen: list[str] = []
    for candidate in dict.fromkeys(filter(None, pythons)):
        its_minor, found = _probe(candidate)
        torch = found.get("torch")
        if its_minor != minor or torch is None:
            what = "no PyTorch" if its_minor == minor else f"Python {its_minor or '?'}"
            seen.append(f"{candidate} ({what})")
        elif not SpecifierSet(specifier).contains(torch[0], prereleases=True):
            seen.append(f"{candidate} (PyTorch {torch[0]})")
        else:
            entries = {top: Path(root, top) for _, root, tops in found.values() for top in tops}
            return HostTorch(torch[0], Path(torch[1]), tuple(entries.values()))
    raise RuntimeUnavailable(
        f"The bundle uses the host's own PyTorch, and its vLLM needs torch{specifier} for Python "
        f"{minor}. Looked at: {'; '.join(seen)}. Name the Python that has it with --python PATH, "
        "or make a bundle without --host-torch."
    )


def _probe(python: str) -> tuple[str, dict[str, tuple[str, str, Sequence[str]]]]:
    """Minor version, and of each distribution of interest: version, folder, what lies in it."""
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _PROBE, TORCHS_OWN.pattern],
            capture_output=True,
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        minor, found = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "", {}
    return minor, found
