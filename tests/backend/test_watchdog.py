"""Processes and shared memory that a dead stub leaves are cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm_triton_backend import watchdog

BACKEND = Path(watchdog.__file__).parents[1]
NO_GROUP = -1

# A "stub": starts the watchdog, then an "engine" that leaves its session, maps shared memory, makes
# a socket where vLLM would and ignores SIGTERM, and says what it did.
STUB = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(BACKEND)!r})
from vllm_triton_backend.watchdog import Watchdog
dog = Watchdog()
code, end, birth = sys.argv[1:]
if birth == "fork":
    engine = os.fork()
    if engine == 0:
        exec(code)
else:
    unmarked = dict(VLLM_RPC_BASE_PATH=os.environ["VLLM_RPC_BASE_PATH"])
    engine = subprocess.Popen(
        [sys.executable, "-c", code],
        env=unmarked if birth == "titled" else None,
        start_new_session=birth == "other session",
    ).pid
print(engine, dog._process.pid, os.environ["VLLM_RPC_BASE_PATH"], flush=True)
if end == "close":
    sys.stdin.readline()
    dog.close()
    print("closed", os.waitstatus_to_exitcode(os.waitpid(engine, 0)[1]), flush=True)
time.sleep(60)
"""
ENGINE = """
import mmap, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
socket.socket(socket.AF_UNIX).bind(os.environ["VLLM_RPC_BASE_PATH"] + "/socket")
descriptor = os.open("/dev/shm/{name}", os.O_CREAT | os.O_RDWR)
os.ftruncate(descriptor, 4096)
area = mmap.mmap(descriptor, 4096)
time.sleep(60)
"""


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def alive(pid: int) -> bool:
    return watchdog.birth(pid) is not None


@pytest.mark.parametrize("end", ["kill", "close"])
@pytest.mark.parametrize("birth", ["fork", "titled", "other session"])
def test_the_engine_and_what_it_made_go_with_the_stub(
    birth: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM forks its engine where it may, as on GPUs, and else starts a new Python. Its processes
    set their title, which overwrites what the kernel shows of their environment."""
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    name = f"watchdog-test-{os.getpid()}-{birth.replace(' ', '-')}-{end}"
    region = Path("/dev/shm", name)
    stub = subprocess.Popen(
        [sys.executable, "-c", STUB, ENGINE.format(name=name), end, birth],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stub.stdout is not None
    assert stub.stdin is not None
    try:
        *pids, sockets = stub.stdout.readline().split()
        engine, dog = map(int, pids)
        # Made is not mapped yet, and only what is mapped is noted.
        assert eventually(lambda: name in watchdog.shm_files(engine))
        assert [path.name for path in Path(sockets).iterdir()] == ["socket"]
        if end == "kill":
            os.kill(stub.pid, signal.SIGKILL)
        else:
            stub.stdin.write("\n")
            stub.stdin.flush()
            assert stub.stdout.readline() == "closed -9\n"
        assert eventually(lambda: not alive(engine))
        assert eventually(lambda: not region.exists())
        assert eventually(lambda: not Path(sockets).exists())
        assert eventually(lambda: not alive(dog))
    finally:
        stub.kill()
        stub.wait()
        stub.stdin.close()
        stub.stdout.close()


def test_the_mark_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, watchdog.MARK: "mine"}
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen(command, env=environment) as mine,
        subprocess.Popen(command, env={**environment, watchdog.MARK: "other"}) as other,
    ):
        try:
            assert eventually(lambda: watchdog.marked("mine", NO_GROUP, set()) == {mine.pid})
            assert watchdog.marked("mine", NO_GROUP, {mine.pid}) == set()
        finally:
            mine.kill()
            other.kill()


def test_what_has_ended_is_not_waited_for() -> None:
    """A killed engine is a zombie until its stub asks for its end, and that waits for us."""
    with subprocess.Popen(["sleep", "60"], process_group=0) as child:
        assert eventually(lambda: watchdog.marked("no mark", child.pid, set()) == {child.pid})
        child.kill()
        assert eventually(lambda: watchdog.marked("no mark", child.pid, set()) == set())
        assert child.returncode is None, "nobody has asked yet"
