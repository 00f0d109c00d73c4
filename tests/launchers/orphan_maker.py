"""A program for the tests: launches a server, says what it consists of, and waits to be killed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pytest_vllm_triton.launchers import attempts
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.process import ProcessHandle, ProcessLauncher


def main() -> None:
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    launcher = ProcessLauncher(
        Path(given["tritonserver"]),
        Path(given["backends"]),
        given["environment"],
        Path(given["work_dir"]),
    )
    model = ModelSpec("m", None, given["config"], files={"1/model.py": given["code"].encode()})
    spec = ServerSpec((model,), Path(given["backend_dir"]))
    if given["when"] == "booting":
        launcher.launch(spec, timeout=600, progress=lambda _: print("booting", flush=True))
    server: ServerHandle = attempts.launch(launcher, spec, timeout=60)
    assert isinstance(server, ProcessHandle)
    forked = 0
    if given["when"] == "forked":
        # A child by plain fork holds a copy of the connection to the supervisor.
        forked = os.fork()
        if forked == 0:
            time.sleep(600)
    facts = {
        "pids": [process.pid for process in server.processes()],
        "server": server.host_pid(),
        "supervisor": server.process.supervisor.pid,
        "prefix": server.shm_prefix,
        "repository": str(server.model_repository),
        "forked": forked,
    }
    print(json.dumps(facts), flush=True)
    if given["when"] == "exit":
        return
    if given["when"] == "crash":
        raise SystemExit(os.abort())
    time.sleep(600)


if __name__ == "__main__":
    main()
