"""A real tritonserver as a process: ready, dead, stopped, killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pytest
from tiny_servers import CONFIG, ENGINE, Launch, model, regions
from waiting import eventually, gone

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.launchers import process
from pytest_vllm_triton.launchers.base import ServerSpec
from pytest_vllm_triton.launchers.ports import reserved_ports
from pytest_vllm_triton.launchers.process import ProcessLauncher

RAISES = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("no engine argument is called 'foo'")
"""

SLOW = """
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""

DIES = """
import os, signal
class TritonPythonModel:
    def initialize(self, args):
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        os._exit(1)
"""


def infer(http: str, name: str, text: str) -> str:
    body = {"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    answer = httpx.post(f"{http}/v2/models/{name}/infer", json=body, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["outputs"][0]["data"][0])


def test_a_launched_server_answers_on_all_its_ports(launch: Launch) -> None:
    server = launch(model("echo"))

    assert infer(server.endpoints.http, "echo", "é😀") == "é😀"
    assert server.endpoints.metrics is not None
    metrics = httpx.get(server.endpoints.metrics, trust_env=False)
    assert 'nv_inference_request_success{model="echo",version="1"} 1' in metrics.text
    host, _, port = server.endpoints.grpc.partition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    assert server.owned
    assert server.is_running()
    assert server.exit_code() is None
    assert 0 < server.boot_seconds < 60
    assert server.log is not None
    assert "successfully loaded 'echo'" in server.log.read()


def test_a_server_listens_on_the_loopback_address_only(launch: Launch) -> None:
    server = launch(model("echo"))

    listening = [
        connection.laddr
        for member in server.processes()
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    # gRPC listens on an IPv6 socket with the IPv4 address mapped into it.
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert len({address.port for address in listening}) == 3


def test_stop_is_graceful_and_leaves_nothing(launch: Launch) -> None:
    server = launch(model("echo"))
    pids = [member.pid for member in server.processes()]
    assert server.host_pid() in pids
    assert len(pids) == 2  # tritonserver and the stub
    assert server.shm_prefix is not None
    assert regions(server.shm_prefix)

    assert server.stop() == 0

    assert all(gone(pid) for pid in pids)
    assert not regions(server.shm_prefix)
    assert not server.is_running()
    assert server.processes() == []
    assert server.stop_report is not None
    assert not server.stop_report.forced
    assert not server.stop_report.orphans
    assert not server.stop_report.swept
    assert server.exit_code() == 0
    assert server.stop() == 0  # once more is harmless


def test_kill_takes_the_whole_tree_and_sweeps(launch: Launch) -> None:
    server = launch(model("engine", ENGINE))
    engine = _engine(server.model_repository)
    pids = [member.pid for member in server.processes()]
    assert engine["pid"] in pids
    assert Path(engine["region"]).exists()

    start = time.monotonic()
    server.kill()

    assert time.monotonic() - start < 5
    assert all(gone(pid) for pid in pids)
    assert not Path(engine["region"]).exists()
    assert server.shm_prefix is not None
    assert not regions(server.shm_prefix)
    assert server.exit_code() == -signal.SIGKILL
    assert server.stop_report is not None
    assert server.stop_report.forced
    assert Path(engine["region"]).name in server.stop_report.swept


def test_stop_ends_and_reports_a_process_that_outlives_the_server(launch: Launch) -> None:
    server = launch(model("engine", ENGINE))
    engine = _engine(server.model_repository)

    assert server.stop() == 0

    assert gone(engine["pid"])
    assert not Path(engine["region"]).exists()
    assert server.stop_report is not None
    assert [orphan.partition(" ")[0] for orphan in server.stop_report.orphans] == [
        str(engine["pid"])
    ]


def test_a_crashed_server_is_noticed_and_its_orphans_stay_visible(launch: Launch) -> None:
    server = launch(model("engine", ENGINE))
    engine = _engine(server.model_repository)
    pid = server.host_pid()
    assert pid is not None

    os.kill(pid, signal.SIGKILL)

    assert eventually(lambda: not server.is_running())
    assert server.exit_code() == -signal.SIGKILL
    assert engine["pid"] in [member.pid for member in server.processes()]
    assert server.stop() == -signal.SIGKILL
    assert gone(engine["pid"])
    assert not Path(engine["region"]).exists()


def test_a_server_that_ignores_sigterm_is_killed(launch: Launch) -> None:
    server = launch(model("echo"))
    pid = server.host_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # deaf to all but SIGKILL

    start = time.monotonic()
    assert server.stop(timeout=0.5) == -signal.SIGKILL

    assert time.monotonic() - start < 5
    assert gone(pid)


def test_a_model_that_fails_to_load_is_told_at_once(
    launch: Launch, launcher: ProcessLauncher
) -> None:
    start = time.monotonic()
    with pytest.raises(ServerFailed) as failure:
        launch(model("good"), model("bad", RAISES), timeout=120)

    assert time.monotonic() - start < 20
    assert "Model 'bad' failed to load" in failure.value.reason
    assert "ValueError: no engine argument is called 'foo'" in failure.value.reason
    assert "no engine argument" in failure.value.log_tail
    assert _nothing_left(launcher)


def test_a_model_that_fails_is_told_while_another_still_loads(launch: Launch) -> None:
    start = time.monotonic()
    with pytest.raises(ServerFailed, match="Model 'bad' failed to load"):
        launch(model("slow", SLOW), model("bad", RAISES), timeout=120)
    assert time.monotonic() - start < 20


def test_a_model_that_fails_is_told_where_the_server_goes_on(launch: Launch) -> None:
    with pytest.raises(ServerFailed, match="no engine argument is called 'foo'"):
        launch(model("good"), model("bad", RAISES), args=("--exit-on-error=false",))


def test_a_model_that_is_not_there_is_told(launch: Launch) -> None:
    start = time.monotonic()
    with pytest.raises(ServerFailed, match=r"exit code 1 .*failed to load all models"):
        launch(model("echo"), load=("other",), timeout=120)
    assert time.monotonic() - start < 20


def test_a_malformed_configuration_is_told_with_its_reason(launch: Launch) -> None:
    with pytest.raises(ServerFailed) as failure:
        launch(model("broken", config=CONFIG + "nonsense: 1"))
    assert "nonsense" in str(failure.value)


def test_a_server_that_dies_at_boot_is_told_with_status_and_log(launch: Launch) -> None:
    start = time.monotonic()
    with pytest.raises(ServerFailed) as failure:
        launch(model("deadly", DIES), timeout=120)
    assert time.monotonic() - start < 20
    assert "signal 9" in failure.value.reason
    assert "loading: deadly" in failure.value.log_tail


def test_a_flag_that_triton_does_not_know_is_told(launch: Launch) -> None:
    with pytest.raises(ServerFailed) as failure:
        launch(model("echo"), args=("--no-such-flag=1",))
    assert "no-such-flag" in str(failure.value)


def test_a_boot_that_takes_too_long_is_told_with_the_log(
    launch: Launch, launcher: ProcessLauncher
) -> None:
    with pytest.raises(ServerFailed) as failure:
        launch(model("slow", SLOW), timeout=3)
    assert "not ready after" in failure.value.reason
    assert "loading: slow" in failure.value.log_tail
    assert _nothing_left(launcher)


def test_a_port_that_was_taken_is_replaced(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        calls: list[int] = []

        def reserve(count: int) -> AbstractContextManager[list[int]]:
            calls.append(count)
            if len(calls) == 1:
                # The metrics port is bound last, when the server already answers as ready.
                return _Ports([*_free(2), taken.getsockname()[1]])
            return reserved_ports(count)

        monkeypatch.setattr(process, "reserved_ports", reserve)
        server = launch(model("echo"))

    assert len(calls) == 2
    assert infer(server.endpoints.http, "echo", "ok") == "ok"
    assert server.endpoints.metrics is not None
    assert server.is_running()


def test_a_port_that_is_always_taken_is_told(
    launch: Launch, launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(process, "reserved_ports", lambda _: _Ports([port, *_free(2)]))
        with pytest.raises(ServerFailed, match=f"Port {port} is already in use"):
            launch(model("echo"))
    assert _nothing_left(launcher)


def test_two_servers_have_nothing_in_common(launch: Launch) -> None:
    first, second = launch(model("echo")), launch(model("echo"))

    assert first.shm_prefix != second.shm_prefix
    assert set(vars(first.endpoints).values()).isdisjoint(vars(second.endpoints).values())
    assert first.stop() == 0
    assert infer(second.endpoints.http, "echo", "alive") == "alive"


def test_the_backend_is_copied_without_caches_and_never_written_to(
    launch: Launch, backend_dir: Path
) -> None:
    (backend_dir / "__pycache__").mkdir()
    (backend_dir / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"")
    (backend_dir / "utils").mkdir()
    (backend_dir / "utils" / "metrics.py").write_text("")
    server = launch(model("echo"))
    assert server.model_repository is not None
    copy = server.model_repository.parent / "backends" / "vllm"

    (backend_dir / "model.py").write_text("# changed meanwhile\n")

    assert (copy / "model.py").read_text() == "# a stand-in\n"
    assert sorted(str(p.relative_to(copy)) for p in copy.rglob("*")) == [
        "model.py",
        "utils",
        "utils/metrics.py",
    ]


def test_environment_and_flags_reach_the_server(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    server = launch(
        model("echo"),
        env={"COLOUR": "green"},
        args=("--metrics-interval-ms=500", "--allow-metrics=false"),
        shm_prefix="pvt_chosen_",
    )
    there = server.main_process()
    assert there is not None

    assert there.environ()["COLOUR"] == "green"
    assert "PYTHONPATH" not in there.environ()
    assert there.environ()["HF_HUB_OFFLINE"] == "1"
    assert server.environment["COLOUR"] == "green"
    assert server.environment["PYTHONPATH"] is None
    assert "--metrics-interval-ms=500" in there.cmdline()
    assert there.cmdline() == server.command
    assert server.endpoints.metrics is None
    assert regions("pvt_chosen_")


def test_the_command_line_to_reproduce_a_server_works(launch: Launch) -> None:
    server = launch(model("echo"))
    text = server.reproduce()
    server.stop()

    with subprocess.Popen(["bash", "-c", f"exec {text}"], stderr=subprocess.PIPE) as by_hand:
        try:
            assert eventually(lambda: _ready(server.endpoints.http), 30)
        finally:
            by_hand.terminate()
            by_hand.communicate(timeout=30)


def test_explicit_mode_loads_only_what_is_asked(launch: Launch) -> None:
    server = launch(model("one"), model("two"), load=("one",))

    assert infer(server.endpoints.http, "one", "x") == "x"
    with pytest.raises(httpx.HTTPStatusError):
        infer(server.endpoints.http, "two", "x")
    loaded = httpx.post(
        f"{server.endpoints.http}/v2/repository/models/two/load", trust_env=False, timeout=30
    )
    assert loaded.status_code == 200
    assert infer(server.endpoints.http, "two", "x") == "x"


def test_control_mode_none_loads_all_and_allows_no_loading(launch: Launch) -> None:
    server = launch(model("one"), model("two"), control_mode="none")

    assert infer(server.endpoints.http, "two", "x") == "x"
    refused = httpx.post(
        f"{server.endpoints.http}/v2/repository/models/two/unload", trust_env=False
    )
    assert refused.status_code != 200


def test_progress_is_told(launcher: ProcessLauncher, backend_dir: Path) -> None:
    told: list[str] = []
    spec = ServerSpec((model("echo"),), backend_dir)
    with launcher.launch(spec, timeout=60, progress=told.append):
        assert "loading model echo" in told
        assert "model echo loaded" in told


def test_ctrl_c_while_booting_leaves_nothing(launcher: ProcessLauncher, backend_dir: Path) -> None:
    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.launch(
            ServerSpec((model("engine", ENGINE),), backend_dir), timeout=60, progress=interrupt
        )
    assert _nothing_left(launcher)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("args", ("--http-port=1",), "--http-port is the launcher's own"),
        ("args", ("--http-port", "1"), "--http-port is the launcher's own"),
        ("backend_dir", Path("/nonexistent"), "does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_the_boot(
    launcher: ProcessLauncher, backend_dir: Path, field: str, value: object, message: str
) -> None:
    fields = {"models": (model("echo"),), "backend_dir": backend_dir, field: value}
    with pytest.raises(UserError, match=message):
        launcher.launch(ServerSpec(**fields), timeout=60)  # type: ignore[arg-type]
    assert not launcher.work_dir.exists()


def test_a_backend_folder_one_level_too_high_gets_a_hint(
    launcher: ProcessLauncher, tmp_path: Path
) -> None:
    (tmp_path / "repo" / "src").mkdir(parents=True)
    (tmp_path / "repo" / "src" / "model.py").write_text("")
    spec = ServerSpec((model("m", config='backend: "vllm"'),), tmp_path / "repo")
    with pytest.raises(UserError, match=r"has no model\.py.*Did you mean .*repo/src"):
        launcher.launch(spec, timeout=60)


def test_a_missing_binary_is_told(backend_dir: Path, tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path / "tritonserver", tmp_path, {}, tmp_path / "servers")
    with pytest.raises(UserError, match="not an executable"):
        launcher.launch(ServerSpec((model("echo"),), backend_dir), timeout=60)


def _engine(repository: Path | None) -> dict[str, object]:
    assert repository is not None
    facts: dict[str, object] = json.loads((repository / "engine" / "engine.json").read_text())
    return facts


def _nothing_left(launcher: ProcessLauncher) -> bool:
    """No process and no shared memory of any server that this launcher ever started."""
    folders = list(launcher.work_dir.iterdir())
    assert folders
    for folder in folders:
        prefix = json.loads((folder / "supervisor.json").read_text())["shm_prefix"]
        state = json.loads((folder / "supervisor-state.json").read_text())
        engine = folder / "models" / "engine" / "engine.json"
        left = [state["pid"], state["supervisor"]]
        if engine.exists():
            facts = json.loads(engine.read_text())
            left.append(facts["pid"])
            assert not Path(facts["region"]).exists()
        assert all(gone(pid) for pid in left)
        assert not regions(prefix)
        assert not [p for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info)]
    return True


class _Ports:
    def __init__(self, ports: list[int]) -> None:
        self.ports = ports

    def __enter__(self) -> list[int]:
        return self.ports

    def __exit__(self, *_: object) -> None:
        pass


def _free(count: int) -> list[int]:
    with reserved_ports(count) as ports:
        return list(ports)


def _ready(http: str) -> bool:
    try:
        return httpx.get(f"{http}/v2/health/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
