"""The readiness rule, against a stand-in of a server that answers as it is told."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import Endpoints, ServerHandle, ServerLog, ServerProcess
from pytest_vllm_triton.launchers.death import DYING_SECONDS, await_death, crashed
from pytest_vllm_triton.launchers.readiness import LoadStumbled, PortTaken, wait_ready
from pytest_vllm_triton.launchers.stalled_stub import LOCK_DESTROYED


@dataclass
class Handle(ServerHandle):
    code: int | None = None

    def host_pid(self) -> int | None:
        return None

    def is_running(self) -> bool:
        return self.code is None

    def exit_code(self) -> int | None:
        return self.code

    def processes(self) -> list[psutil.Process]:
        return []

    def main_process(self) -> None:
        return None

    def send_signal(self, number: signal.Signals) -> None:
        pass

    def regions_of(self, processes: Iterable[ServerProcess]) -> set[str]:
        return set()

    def all_regions(self) -> set[str]:
        return set()

    def stop(self, timeout: float | None = None) -> int | None:
        return self.code

    def kill(self) -> None:
        pass


class Server:
    """Answers each path with what is in ``answers``; 400 for others."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                length = int(self.headers.get("content-length") or 0)
                self.rfile.read(length)
                status, body = server.answers.get(self.path, (400, {}))
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{self.http.server_port}"
        self.handle = Handle(
            Endpoints(url, "127.0.0.1:1", f"{url}/metrics"), log=ServerLog(folder / "log")
        )

    def ready(self, *models: str) -> None:
        self.answers["/v2/health/ready"] = (200, {})
        self.answers["/metrics"] = (200, {})
        for model in models:
            self.answers[f"/v2/models/{model}/ready"] = (200, {})

    def log(self, text: str) -> None:
        assert self.handle.log is not None
        with self.handle.log.path.open("a") as file:
            file.write(text)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def failure(server: Server, *models: str, timeout: float = 30.0) -> ServerFailed:
    start = time.monotonic()
    with pytest.raises(ServerFailed) as caught:
        wait_ready(server.handle, models, timeout=timeout)
    assert time.monotonic() - start < 10
    return caught.value


def test_ready(server: Server) -> None:
    server.ready("m")
    wait_ready(server.handle, ["m"], timeout=10)
    assert set(server.asked) == {"/v2/models/m/ready", "/v2/health/ready", "/metrics"}


@pytest.mark.parametrize("missing", ["/v2/models/m/ready", "/v2/health/ready", "/metrics"])
def test_each_part_of_the_rule_counts(server: Server, missing: str) -> None:
    server.ready("m", "n")
    server.answers["/v2/repository/index"] = (200, [{"name": "m"}])
    del server.answers[missing]
    reason = failure(server, "n", "m", timeout=0.5).reason
    assert "not ready after 0.5 s" in reason
    assert ("'m'" if "models" in missing else missing) in reason


def test_it_waits_for_what_comes_later(server: Server) -> None:
    timer = threading.Timer(0.5, server.ready, ["m"])
    timer.start()
    wait_ready(server.handle, ["m"], timeout=10)
    timer.join()


def test_a_model_that_is_unavailable_is_told_with_its_reason(server: Server) -> None:
    server.ready()
    server.answers["/v2/repository/index"] = (
        200,
        [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unknown key 'foo'"}],
    )
    assert failure(server, "m").reason == "Model 'm' failed to load: unknown key 'foo'"


@pytest.mark.parametrize("state", [{"state": "LOADING"}, {}, {"state": "UNAVAILABLE"}])
def test_a_model_that_is_not_there_yet_is_waited_for(server: Server, state: object) -> None:
    server.ready()
    server.answers["/v2/repository/index"] = (200, [{"name": "m", **dict(state)}])  # type: ignore[call-overload]
    assert "not ready after" in failure(server, "m", timeout=0.3).reason


@pytest.mark.parametrize(
    ("word", "stumbled"),
    [
        ("boost::interprocess::lock_exception", True),
        ("port: 39887, code: -98, name: EADDRINUSE", True),
        ("std::bad_alloc", False),
    ],
)
def test_a_race_in_triton_itself_is_told_apart(server: Server, word: str, stumbled: bool) -> None:
    server.log(f"terminate called after throwing an instance of '{word}'\n")
    server.handle.code = -signal.SIGABRT
    assert isinstance(failure(server, "m"), LoadStumbled) == stumbled


def test_a_model_that_the_server_does_not_know(server: Server) -> None:
    server.ready()
    server.answers["/v2/repository/index"] = (200, [{"name": "b"}, {"name": "a"}])
    assert failure(server, "m").reason == "The server has no model 'm'; it has: a, b."


@pytest.mark.parametrize(
    ("code", "words"), [(1, "exit code 1"), (0, "exit code 0"), (-9, "signal 9")]
)
def test_a_dead_server_is_told_with_its_last_words(server: Server, code: int, words: str) -> None:
    server.ready("m")  # somebody else may answer on its port
    server.handle.code = code
    server.log("starting\nerror: creating server: no such thing\n")
    told = failure(server, "m")
    assert words in told.reason
    assert "creating server: no such thing" in told.reason
    assert told.log_tail.splitlines()[0] == "starting"


def test_a_dying_server_is_waited_for(server: Server) -> None:
    """It takes no connections any more, but its end is told later: it writes its core."""
    server.close()
    timer = threading.Timer(0.5, setattr, [server.handle, "code", -signal.SIGSEGV])
    timer.start()
    await_death(server.handle)
    assert crashed(server.handle)
    timer.join()


def test_a_dying_server_may_still_take_connections(server: Server) -> None:
    """A process that ends closes one socket after the other."""
    server.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.handle.endpoints = replace(
            server.handle.endpoints, http=f"http://127.0.0.1:{listener.getsockname()[1]}"
        )

        def end() -> None:
            connection, _ = listener.accept()
            connection.close()
            time.sleep(0.5)
            server.handle.code = -signal.SIGSEGV

        thread = threading.Thread(target=end)
        thread.start()
        await_death(server.handle)
        assert crashed(server.handle)
        thread.join()


@pytest.mark.parametrize("owned", [True, False])
def test_a_server_that_is_not_dying_is_not_waited_for(server: Server, owned: bool) -> None:
    """One that answers, and an attached one, whose end nobody will tell."""
    server.handle.owned = owned
    if not owned:
        server.close()
    start = time.monotonic()
    await_death(server.handle)
    assert time.monotonic() - start < DYING_SECONDS / 2


@pytest.mark.parametrize(
    ("code", "is_crash"), [(-11, True), (139, True), (-9, False), (11, False), (None, False)]
)
def test_a_crash_is_told_from_other_ends(server: Server, code: int | None, is_crash: bool) -> None:
    server.handle.code = code
    assert crashed(server.handle) == is_crash


@pytest.mark.parametrize("code", [-signal.SIGABRT, 128 + signal.SIGABRT])
def test_only_a_lock_that_is_gone_aborts_triton_by_itself(server: Server, code: int) -> None:
    server.handle.code = code
    server.log("terminate called after throwing an instance of 'std::bad_alloc'\n")
    assert not crashed(server.handle)
    server.log(f"terminate called after throwing an instance of '{LOCK_DESTROYED}'\n")
    assert crashed(server.handle)


def test_a_load_failure_in_the_log(server: Server) -> None:
    server.log("E1 x.cc:642] \"failed to load 'm' version 1: Internal: bad\\nvalue\"\n")
    told = failure(server, "m")
    assert told.reason == "Model 'm' failed to load: Internal: bad\nvalue"


def test_a_load_failure_of_a_model_that_nobody_waits_for(server: Server) -> None:
    server.ready("m")
    server.log("E1 x.cc:642] \"failed to load 'other' version 1: Internal: bad\"\n")
    wait_ready(server.handle, ["m"], timeout=10)


def test_a_stub_that_died_says_why_before(server: Server) -> None:
    server.log(
        'I1 pb_stub.cc:366] "Failed to initialize Python stub: TypeError: foo"\n'
        "E1 x.cc:642] \"failed to load 'm' version 1: Internal: Stub process 'm' is not "
        'healthy."\n'
    )
    assert "is not healthy. TypeError: foo" in failure(server, "m").reason


def test_a_line_that_is_written_in_pieces_is_read_as_one(server: Server) -> None:
    server.log("E1 x.cc:642] \"failed to load 'm' ver")
    timer = threading.Timer(0.4, server.log, ['sion 1: Internal: bad"\nmore'])
    timer.start()
    assert "Internal: bad" in failure(server, "m").reason
    timer.join()


def test_a_busy_port_is_a_failure_of_its_own(server: Server) -> None:
    server.log(
        'E1 main.cc:293] "failed to start Metrics service: Unavailable - Socket '
        "'127.0.0.1:38675' already in use \"\n"
    )
    assert isinstance(failure(server, "m"), PortTaken)


def test_progress_tells_each_stage(server: Server) -> None:
    server.ready("m")
    server.log(
        'I1 model_lifecycle.cc:472] "loading: m:1"\n'
        "(EngineCore pid=1) INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0)\n"
        "(Worker pid=2) INFO [cpu_model_runner.py:68] Starting to load model /x...\n"
        "(EngineCore pid=1) INFO [kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens\n"
        "I1 model_lifecycle.cc:839] \"successfully loaded 'm'\"\n"
    )
    told: list[str] = []
    wait_ready(server.handle, ["m"], timeout=10, progress=told.append)
    assert told == [
        "loading model m",
        "vLLM engine starting",
        "vLLM loading the weights",
        "vLLM preparing its cache",
        "model m loaded",
    ]
