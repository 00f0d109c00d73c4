"""The supervisor, over stand-ins of a server: small programs with awkward children."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_servers import SHM, Launch, model, regions
from waiting import eventually, gone

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.process import ProcessHandle
from pytest_vllm_triton.supervision import client
from pytest_vllm_triton.supervision.client import Supervised
from pytest_vllm_triton.supervision.standalone import (
    processes,
    scratch,
    shared_memory,
    supervisor,
)

Start = Callable[..., Supervised]

#: Starts a grandchild that is orphaned at once, in a session of its own, deaf to polite signals.
FAMILY = """
import os, signal, sys, time

# One write: with PYTHONUNBUFFERED, print makes two, and both processes say something.
def say(word):
    os.write(1, f"{word}\\n".encode())

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    deaf()
    say(os.getpid())
    time.sleep(600)
os.wait()
say("ready")
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Supervised] = []

    def run(code: str, **settings: object) -> Supervised:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        process = Supervised.start(
            [sys.executable, "-c", textwrap.dedent(code)],
            dict(os.environ),
            folder,
            log=folder / "log",
            **settings,  # type: ignore[arg-type]
        )
        started.append(process)
        process.wait_started()
        return process

    yield run
    for process in started:
        process.end(0.0)


def said(process: Supervised, word: str) -> bool:
    return word in (process.folder / "log").read_text()


def orphan_of(process: Supervised) -> int:
    """The process id that the grandchild of FAMILY writes, once both of them are ready."""

    def numbers() -> list[str]:
        return [word for word in (process.folder / "log").read_text().split() if word.isdigit()]

    assert eventually(lambda: said(process, "ready") and numbers())
    return int(numbers()[0])


def test_orphans_in_other_sessions_stay_in_the_tree(start: Start) -> None:
    process = start(FAMILY)
    orphan = orphan_of(process)

    assert set(process.tree()) == {process.pid, orphan}
    report = process.end(5.0)

    assert gone(orphan)
    assert report.exit_code == -signal.SIGTERM
    assert not report.forced
    assert [line.split()[0] for line in report.orphans] == [str(orphan)]


def test_children_that_end_with_the_server_are_no_orphans(start: Start) -> None:
    process = start(
        """
        import os, time
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # returns when the server ends
            time.sleep(0.5)
            os._exit(0)
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    assert eventually(lambda: said(process, "ready"))
    assert len(process.tree()) == 2

    assert process.end(5.0).orphans == ()


def test_the_exit_code_is_reported(start: Start) -> None:
    process = start("raise SystemExit(7)")
    assert eventually(lambda: not process.is_running())
    assert process.exit_code == 7
    assert process.end(5.0).exit_code == 7


def test_a_process_deaf_to_sigterm_is_killed_after_the_grace(start: Start) -> None:
    process = start(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)"
    )
    assert eventually(lambda: said(process, "ready"))

    began = time.monotonic()
    report = process.end(0.5)

    assert 0.5 <= time.monotonic() - began < 3
    assert report.forced
    assert report.exit_code == -signal.SIGKILL


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    process = Supervised.start(["/nonexistent/server"], {}, tmp_path, log=tmp_path / "log")
    with pytest.raises(ServerFailed, match=r"/nonexistent/server could not be started"):
        process.wait_started()
    assert eventually(lambda: gone(process.supervisor.pid))


def test_signals_for_the_terminal_do_not_reach_the_server(start: Start) -> None:
    process = start(FAMILY)
    orphan_of(process)
    assert process.pid is not None

    for pid in (process.pid, process.supervisor.pid):
        assert os.getpgid(pid) == pid
        # A session has its own share of the processors, for which the others would wait.
        assert os.getsid(pid) == os.getsid(0)
    # And the supervisor does not die of them either.
    os.kill(process.supervisor.pid, signal.SIGINT)
    os.kill(process.supervisor.pid, signal.SIGHUP)
    assert process.end(5.0).exit_code == -signal.SIGTERM


def test_the_server_gets_default_signal_handlers(start: Start) -> None:
    process = start(
        "import signal\n"
        "print([signal.getsignal(n) == signal.SIG_IGN for n in"
        " (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)], flush=True)"
    )
    assert eventually(lambda: said(process, "]"))
    assert said(process, "[False, False, False, False]")


def test_sigterm_to_the_supervisor_ends_the_server(start: Start) -> None:
    process = start(FAMILY, orphan_grace=2.0)
    orphan = orphan_of(process)
    os.kill(process.supervisor.pid, signal.SIGTERM)
    assert eventually(lambda: gone(orphan) and gone(process.pid or 0))
    assert process.end(1.0).exit_code == -signal.SIGTERM


def test_a_killed_supervisor_takes_the_server_with_it(start: Start) -> None:
    process = start(FAMILY)
    orphan_of(process)
    process.supervisor.kill()
    assert eventually(lambda: gone(process.pid or 0))


def test_stop_after_the_supervisor_was_killed_still_ends_all(launch: Launch) -> None:
    server = launch(model("echo"))
    assert isinstance(server, ProcessHandle)
    pids = [process.pid for process in server.processes()]
    server.process.supervisor.kill()
    server.process.supervisor.wait()

    server.stop(timeout=1.0)

    assert all(gone(pid) for pid in pids)
    assert not regions(server.shm_prefix or "?")
    assert not server.is_running()


def test_the_deaf_are_found_after_the_supervisor_was_killed(start: Start) -> None:
    """The server by its process group, and its orphan, of another session, as it had been noted."""
    process = start(FAMILY.replace("os.wait()", "os.wait(); deaf()"))
    orphan = orphan_of(process)
    assert eventually(lambda: [orphan] in [noted[:1] for noted in _state(process)["noted"]], 10)
    process.supervisor.kill()
    process.supervisor.wait()

    assert process.is_running()
    assert set(process.tree()) == {process.pid, orphan}
    report = process.end(0.5)

    assert report.forced
    assert gone(orphan)
    assert gone(process.pid or 0)


def test_a_hanging_supervisor_does_not_hang_the_stop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.5)
    process = start("import time; time.sleep(600)")
    os.kill(process.supervisor.pid, signal.SIGSTOP)

    process.end(0.5)

    assert gone(process.pid or 0)
    assert gone(process.supervisor.pid)


def test_pytest_is_more_patient_than_the_longest_end() -> None:
    children, killed = supervisor.MAX_CHILDREN_SECONDS, supervisor.KILL_SECONDS
    assert children + killed + supervisor.KERNEL_SECONDS < supervisor.PATIENCE_SECONDS - 10


def test_the_supervisor_starts_fast(start: Start) -> None:
    began = time.monotonic()
    start("import time; time.sleep(600)")
    assert time.monotonic() - began < 2.0


# --- shared memory ---------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[Callable[[str], Path]]:
    """Makes regions; removes them after the test."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = SHM / f"{name}{os.getpid()}_{len(made)}"
        path.write_bytes(bytes(4096))
        path.chmod(0o600)
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["psm_t", "sem.mp-t", "triton_t", "pvt_mine_"])
def test_leftovers_are_swept(start: Start, region: Callable[[str], Path], name: str) -> None:
    process = start("import time; time.sleep(600)", shm_prefix="pvt_mine_")
    leftover = region(name)

    report = process.end(5.0)

    assert not leftover.exists()
    assert report.swept == (leftover.name,)


def test_what_was_there_before_stays(start: Start, region: Callable[[str], Path]) -> None:
    before = [region("psm_t"), region("sem.mp-t"), region("pvt_mine_")]
    process = start("import time; time.sleep(600)", shm_prefix="pvt_mine_")

    assert process.end(5.0).swept == ()

    assert all(path.exists() for path in before)


@pytest.mark.parametrize("name", ["psm_t", "pvt_mine_"])
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_what_a_living_process_uses_stays(
    start: Start, region: Callable[[str], Path], name: str, how: str
) -> None:
    process = start("import time; time.sleep(600)", shm_prefix="pvt_mine_")
    used = region(name)
    with used.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 4096)
        if how == "mapped":
            file.close()
        else:
            mapping.close()

        assert process.end(5.0).swept == ()

    assert used.exists()
    mapping.close()


def test_what_another_process_once_used_stays(start: Start, region: Callable[[str], Path]) -> None:
    """Its owner may have let go of it for a moment: it is not ours to remove."""
    process = start("import time; time.sleep(600)")
    foreign = region("psm_t")
    with foreign.open("r+b"):
        assert eventually(lambda: foreign.name in _state(process)["foreign"])

    assert process.end(5.0).swept == ()

    assert foreign.exists()


def test_an_unusual_name_is_swept_if_only_the_server_used_it(
    start: Start, region: Callable[[str], Path]
) -> None:
    path = region("unusual_")
    path.unlink()
    process = start(
        f"""
        import os, time
        fd = os.open({str(path)!r}, os.O_CREAT | os.O_RDWR, 0o600)
        os.ftruncate(fd, 10)
        time.sleep(600)
        """
    )
    other = region("unusual_")  # nobody was ever seen using this one

    assert eventually(lambda: path.name in _state(process)["ours"])
    assert process.end(5.0).swept == (path.name,)
    assert other.exists()


def test_in_a_container_only_what_was_seen_in_use_is_swept(
    region: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may share its /dev/shm whose processes cannot be seen from inside."""
    found = shared_memory.Regions("pvt_mine_", shared_memory.list_regions())
    unknown, prefixed, ours = region("psm_t"), region("pvt_mine_"), region("psm_t")
    found.ours.add(ours.name)
    monkeypatch.setattr(shared_memory, "FIRST_PID_NAMESPACE", "another")

    assert set(found.sweep()) == {prefixed.name, ours.name}
    assert unknown.exists()


def test_regions_are_recognized_by_identity_not_by_name(region: Callable[[str], Path]) -> None:
    path = region("psm_t")
    status = path.stat()
    with path.open("r+b") as file:
        assert (status.st_dev, status.st_ino) in shared_memory.regions_of(os.getpid())
        mapping = mmap.mmap(file.fileno(), 4096)
    assert (status.st_dev, status.st_ino) in shared_memory.regions_of(os.getpid())
    mapping.close()
    assert (status.st_dev, status.st_ino) not in shared_memory.regions_of(os.getpid())


def test_processes_with_awkward_names_are_read(kill_later: list[int], tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"]) as sleeping:
        kill_later.append(sleeping.pid)
        assert eventually(lambda: processes.command_line(sleeping.pid).startswith(str(program)))
        found = processes.all_processes()[sleeping.pid]
        assert found.parent == os.getpid()
        assert found.group == os.getpgid(0)
        sleeping.kill()


def _state(process: Supervised) -> dict[str, Any]:
    import json

    state: dict[str, Any] = json.loads((process.folder / "supervisor-state.json").read_text())
    return state


def test_a_region_of_a_process_that_has_just_been_started_is_ours() -> None:
    """The tree was looked at before that: only the new process's parent is in it."""
    name = f"pvt_test{os.getpid()}_new"
    script = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); input()"
    (SHM / name).write_bytes(b"x")
    try:
        with subprocess.Popen(
            [sys.executable, "-c", script, str(SHM / name)], stdin=subprocess.PIPE
        ) as child:
            found = shared_memory.Regions("", set())
            status = (SHM / name).stat()
            assert eventually(
                lambda: (status.st_dev, status.st_ino) in shared_memory.regions_of(child.pid)
            )
            found.observe({name}, [os.getpid()])
            child.kill()
        assert found.ours == {name}
        assert not found.foreign
    finally:
        (SHM / name).unlink()


#: Tells a folder that it made in the place for temporary files, and stays.
TEMPORARY = """
import os, tempfile, time
os.write(1, tempfile.mkdtemp().encode() + b"\\nready\\n")
time.sleep(600)
"""


def temporary_folder_of(process: Supervised) -> Path:
    """The one that TEMPORARY tells."""
    assert eventually(lambda: said(process, "ready"))
    folder = Path((process.folder / "log").read_text().split()[0])
    assert folder.is_dir()
    assert folder.parent != Path(tempfile.gettempdir())
    return folder.parent


@pytest.mark.parametrize("grace", [0.0, 5.0], ids=["kill", "stop"])
def test_temporary_files_go_with_the_process(start: Start, grace: float) -> None:
    process = start(TEMPORARY)
    folder = temporary_folder_of(process)
    process.end(grace)
    assert not folder.exists()


def test_temporary_files_go_although_the_supervisor_was_killed(start: Start) -> None:
    process = start(TEMPORARY)
    folder = temporary_folder_of(process)
    os.kill(process.supervisor.pid, signal.SIGKILL)
    process.end(5.0)
    assert not folder.exists()


def test_temporary_files_of_the_dead_go_and_of_the_living_stay(start: Start) -> None:
    dead, living = start(TEMPORARY), start(TEMPORARY)
    left, kept = temporary_folder_of(dead), temporary_folder_of(living)
    assert dead.pid is not None
    os.kill(dead.supervisor.pid, signal.SIGKILL)
    os.kill(dead.pid, signal.SIGKILL)
    assert eventually(lambda: gone(dead.supervisor.pid))
    assert left.is_dir()

    start("pass")

    assert not left.exists()
    assert kept.is_dir()


def test_a_long_path_for_temporary_files_is_left_as_it_is(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's sockets below a folder in it would have names that are too long."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("import tempfile; print(tempfile.gettempdir(), 'ready', flush=True)")
    assert eventually(lambda: said(process, "ready"))
    assert said(process, f"{tmp_path} ready")


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """A folder as /tmp is after two servers; one has unpacked something."""
    folder = tmp_path / "tmp"
    for name in ("python_env_aB3xYz", "python_env_0123Zz/0", "python_env_of_somebody"):
        (folder / name).mkdir(parents=True)
    return folder


def test_folders_of_killed_servers_go_if_empty(
    environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "a_tritonserver_runs", lambda: False)
    scratch.remove_environments(str(environments))
    names = sorted(path.name for path in environments.iterdir())
    assert names == ["python_env_0123Zz", "python_env_of_somebody"]


def test_folders_stay_while_any_server_runs(environments: Path, start: Start) -> None:
    before = sorted(environments.iterdir())
    code = "open('/proc/self/comm', 'w').write('tritonserver'); print('ready', flush=True)"
    process = start(f"{code}; import time; time.sleep(60)")
    assert eventually(lambda: said(process, "ready"))
    scratch.remove_environments(str(environments))
    assert sorted(environments.iterdir()) == before
