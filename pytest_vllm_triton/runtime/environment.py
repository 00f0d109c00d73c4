"""The virtual environment of a runtime."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime.interpreter import Interpreter


@dataclass(frozen=True)
class Environment:
    """A virtual environment, made or to be made.

    Attributes:
        root: the folder that holds it, and the scratch files of those who work on it.
        interpreter: what it is made from.
    """

    root: Path
    interpreter: Interpreter

    @property
    def folder(self) -> Path:
        return self.root / "venv"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python3"

    @property
    def site_packages(self) -> Path:
        return self.folder / "lib" / f"python{self.interpreter.minor}" / "site-packages"

    def make(self) -> None:
        """Make it anew.

        Raises:
            RuntimeUnavailable: the interpreter cannot.
        """
        if self.folder.exists():
            shutil.rmtree(self.folder)
        command = [str(self.interpreter.executable), "-I", "-m", "venv", "--without-pip"]
        made = subprocess.run(
            [*command, str(self.folder)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if made.returncode != 0:
            raise RuntimeUnavailable(
                f"{self.interpreter.executable} could not make a virtual environment in "
                f"{self.root.parent}: {(made.stderr or made.stdout).strip()[-300:]}"
            )
