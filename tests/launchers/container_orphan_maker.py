"""A program for the tests: launches a server in a container, says so, and waits for its own end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pytest_vllm_triton.launchers import attempts
from pytest_vllm_triton.launchers.base import ModelSpec, ServerSpec, new_shm_prefix
from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions
from pytest_vllm_triton.launchers.container_handle import ContainerHandle


def main() -> None:
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    options = ContainerOptions(given["image"], "none", given["ipc"])
    launcher = ContainerLauncher(options, Path(given["work_dir"]))
    model = ModelSpec("m", None, given["config"], files={"1/model.py": given["code"].encode()})
    prefix = new_shm_prefix()
    spec = ServerSpec((model,), Path(given["backend_dir"]), shm_prefix=prefix)
    launcher.prepare()
    assert launcher._guard is not None
    facts = {
        "run": launcher.run_id,
        "guard": launcher._guard.pid,
        "supervisor": launcher._guard.supervisor.pid,
        "prefix": prefix,
    }

    def booting(line: str) -> None:
        if given["when"] == "booting" and "loading" in line:
            print(json.dumps(facts), flush=True)

    try:
        server = attempts.launch(launcher, spec, timeout=120, progress=booting)
        assert isinstance(server, ContainerHandle)
        print(json.dumps(facts), flush=True)
        if given["when"] != "exit":
            time.sleep(600)
    except KeyboardInterrupt:
        if given["when"] == "serving":
            server.stop()
        print("interrupted", flush=True)


if __name__ == "__main__":
    main()
