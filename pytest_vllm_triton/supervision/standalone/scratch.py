"""Temporary files: a folder for each server's own, and what Triton leaves in /tmp."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re

from .processes import all_processes

#: vLLM's sockets have paths of up to 60 characters below the folder, and may have 107.
LONGEST_TMPDIR = 30
SCRATCH = "pvt-"
SCRATCH_NAME = re.compile(SCRATCH + "[0-9a-f]{8}")
#: Of the folders that Triton's Python backend makes, always in /tmp.
ENVIRONMENT_NAME = re.compile(r"python_env_[A-Za-z0-9]{6}")


class Scratch:
    """A folder for the temporary files of one server; without a path where there is no room.

    It is locked as long as its maker lives. Those that are not were left by a supervisor that was
    killed together with everything else, and go when the next one is made.
    """

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self.path = ""
        if len(parent) > LONGEST_TMPDIR:
            return
        with contextlib.suppress(OSError):
            for name in filter(SCRATCH_NAME.fullmatch, os.listdir(parent)):
                self.remove_if_left(os.path.join(parent, name))
            path = os.path.join(parent, SCRATCH + os.urandom(4).hex())
            os.mkdir(path, 0o700)
            self.lock(path)  # never closed: the lock ends with this process
            self.path = path

    @staticmethod
    def lock(path: str) -> int:
        """Raises OSError where another process holds it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def remove_if_left(self, path: str) -> None:
        with contextlib.suppress(OSError):
            descriptor = self.lock(path)
            remove_folder(path)
            os.close(descriptor)

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        """This environment, with the folder in it; what PyTorch compiles is kept for the next."""
        if not self.path:
            return given
        compiled = os.path.join(self.parent, f"torchinductor_{os.getuid()}")
        return {"TORCHINDUCTOR_CACHE_DIR": compiled, **given, "TMPDIR": self.path}

    def remove(self) -> None:
        remove_folder(self.path)


def remove_folder(path: str) -> None:
    if path:
        import shutil  # takes a while to import, and is needed at the end only

        shutil.rmtree(path, ignore_errors=True)


def remove_environments(folder: str = "/tmp") -> None:
    """Remove the folders that killed servers' Python backends left, if no server runs any more:
    nothing tells whose one is. Only empty ones; Triton unpacks into them what few models have."""
    if a_tritonserver_runs():
        return
    for name in filter(ENVIRONMENT_NAME.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if os.stat(path, follow_symlinks=False).st_uid == os.geteuid():
                os.rmdir(path)


def a_tritonserver_runs() -> bool:
    """Whether there is such a process on this host, whoever started it."""
    for process in all_processes().values():
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/comm") as file:
            if file.read().strip() == "tritonserver" and process.lives:
                return True
    return False
