"""Real containers with tiny models: ready, dead, stopped, killed, and gone whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tiny_servers import CONFIG, ECHO, model, regions, stalling_model
from victims import Victim, started
from waiting import eventually

from pytest_vllm_triton import assets
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.launchers import attempts, docker_engine, leftovers, stalled_stub
from pytest_vllm_triton.launchers.base import ModelSpec, ServerSpec
from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions
from pytest_vllm_triton.launchers.container_handle import ContainerHandle
from pytest_vllm_triton.launchers.repository import copy_backend
from pytest_vllm_triton.progress import silent

#: Where this is set, a missing Docker or image is a failure: CI must not skip in silence.
REQUIRED = "CONTAINER_TESTS_REQUIRED"
IMAGE = "pytest-vllm-triton-cpu"

SLOW_LOAD = """
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""
SLOW_ANSWER = """
import time
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(600)
"""
SAYS_ENVIRONMENT = """
import os, sys
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        print("the token is", os.environ.get("HF_TOKEN"), file=sys.stderr, flush=True)
    def execute(self, requests):
        answer = np.array([os.environ.get("HF_TOKEN", "")[::-1].encode()], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", answer)]) for _ in requests]
"""
SECRET = "hf_abcdefghijk"

Launch = Callable[..., ContainerHandle]


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    try:
        client = docker_engine.connect(timeout=60)
    except UserError as error:
        unavailable(f"needs Docker: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(docker_client: Any) -> str:
    tags = [tag for found in docker_client.images.list(IMAGE) for tag in found.tags]
    if not tags:
        unavailable("needs the CPU image: make image")
    return str(sorted(tags)[-1])


def unavailable(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def make_launcher(image: str, tmp_path: Path) -> Iterator[Callable[..., ContainerLauncher]]:
    made: list[ContainerLauncher] = []

    def make(**options: Any) -> ContainerLauncher:
        wanted = {"image": image, "gpus": "none", **options}
        made.append(ContainerLauncher(ContainerOptions(**wanted), tmp_path / "servers"))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


@pytest.fixture
def launcher(make_launcher: Callable[..., ContainerLauncher]) -> ContainerLauncher:
    return make_launcher()


@pytest.fixture
def launch(launcher: ContainerLauncher, backend_dir: Path, docker_client: Any) -> Iterator[Launch]:
    """Launch a server of these models; no container of it is left after the test."""
    handles: list[ContainerHandle] = []

    def start(*models: ModelSpec, of: ContainerLauncher = launcher, **fields: Any) -> Any:
        timeout = fields.pop("timeout", 60.0)
        progress = fields.pop("progress", silent)
        spec = ServerSpec(models, fields.pop("backend_dir", backend_dir), **fields)
        handle = attempts.launch(of, spec, timeout=timeout, progress=progress)
        assert isinstance(handle, ContainerHandle)
        handles.append(handle)
        return handle

    yield start
    for handle in handles:
        handle.kill()
    assert containers(docker_client, launcher.run_id) == []


def containers(client: Any, run: str) -> list[str]:
    """The containers of a run, stopped ones too."""
    label = f"{leftovers.RUN_LABEL}={run}"
    return [c.name for c in client.containers.list(all=True, filters={"label": label})]


def infer(http: str, name: str, text: str, timeout: float = 30.0) -> str:
    body = {"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    url = f"{http}/v2/models/{name}/infer"
    answer = httpx.post(url, json=body, trust_env=False, timeout=timeout)
    answer.raise_for_status()
    return str(answer.json()["outputs"][0]["data"][0])


# -- a server --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a container's server waits for")
def test_a_load_that_triton_is_stuck_in_is_asked_for_again(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalled_stub, "PATIENCE_SECONDS", 2.0)
    server = launch(model("echo"))
    repository = ModelRepository(server)
    spec = stalling_model(Path("/tmp/stalled"))
    repository.add(spec)
    repository.load(spec.name).ok()
    assert repository.is_ready(spec.name)


def test_a_launched_server_answers_on_all_its_ports(launch: Launch, docker_client: Any) -> None:
    server = launch(model("echo"))

    assert infer(server.endpoints.http, "echo", "é😀") == "é😀"
    assert server.endpoints.metrics is not None
    metrics = httpx.get(server.endpoints.metrics, trust_env=False)
    assert 'nv_inference_request_success{model="echo",version="1"} 1' in metrics.text
    assert server.log is not None
    assert "successfully loaded 'echo'" in server.log.read()
    assert server.is_running()
    assert server.exit_code() is None
    assert server.owned
    assert server.host_pid() is not None
    published = docker_client.containers.get(server.container_id).attrs["NetworkSettings"]["Ports"]
    bound = [binding for port in ("8000", "8001", "8002") for binding in published[f"{port}/tcp"]]
    assert {binding["HostIp"] for binding in bound} == {"127.0.0.1"}


def test_server_state_from_inside(launch: Launch) -> None:
    server = launch(model("echo"))

    main, stub = server.processes()
    assert main.name() == "tritonserver"
    assert server.main_process() == main
    assert stub.cmdline()[0].endswith("triton_python_backend_stub")
    assert main.children(recursive=True) == [stub]
    assert main.num_fds() > 10
    assert server.shm_prefix is not None
    used = server.regions_of([stub])
    assert used
    assert all(name.startswith(server.shm_prefix) for name in used)
    assert server.regions_left([*used, "never_there"]) == sorted(used)
    assert not regions(server.shm_prefix), "not on this host"

    stub.kill()

    assert eventually(lambda: not stub.is_running() or stub.status() == psutil.STATUS_ZOMBIE)
    assert stub not in server.processes()
    assert server.is_running()


def test_stop_is_graceful_and_leaves_nothing(launch: Launch, docker_client: Any) -> None:
    server = launch(model("echo"))
    used = server.regions_of(server.processes())

    assert server.stop() == 0

    assert not server.is_running()
    assert server.exit_code() == 0
    assert server.processes() == []
    assert server.main_process() is None
    assert server.regions_left(used) == []
    assert server.stop_report is not None
    assert not server.stop_report.forced
    assert server.log is not None
    assert "All models are stopped, unloading models" in server.log.read()
    assert server.stop() == 0  # once more is harmless


def test_a_server_that_does_not_stop_is_killed(launch: Launch) -> None:
    server = launch(model("echo"))
    server.send_signal(signal.SIGSTOP)  # deaf to all but SIGKILL

    server.stop(timeout=1)

    assert server.exit_code() == -signal.SIGKILL
    assert server.stop_report is not None
    assert server.stop_report.forced


def test_the_docker_run_line_starts_the_same_server(launch: Launch) -> None:
    server = launch(model("echo"))
    line = server.reproduce()
    server.stop()

    with subprocess.Popen(
        shlex.split(line), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as run:
        try:
            ready = f"{server.endpoints.http}/v2/models/echo/ready"

            def is_ready() -> bool:
                try:
                    return httpx.get(ready, trust_env=False).status_code == 200
                except httpx.TransportError:
                    return False

            assert eventually(is_ready, 30)
            assert infer(server.endpoints.http, "echo", "by hand") == "by hand"
        finally:
            run.send_signal(signal.SIGTERM)
            assert run.wait(30) == 0


def test_secrets_reach_the_server_and_nothing_else(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    server = launch(model("says", SAYS_ENVIRONMENT))

    assert infer(server.endpoints.http, "says", "x") == SECRET[::-1]
    assert server.log is not None
    assert "the token is ***" in server.log.read()
    assert SECRET not in server.log.read()
    assert SECRET not in server.reproduce()
    assert "--env=HF_TOKEN " in server.reproduce()
    assert server.log.path.parent.is_dir()
    for file in server.log.path.parent.parent.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_two_servers_with_one_shm(launch: Launch) -> None:
    one = launch(model("echo"))
    two = launch(model("echo"), shm_domain=one.shm_domain)
    other = launch(model("echo"))

    assert one.shm_domain == two.shm_domain != other.shm_domain
    used = two.regions_of(two.processes())
    assert one.regions_left(used) == two.regions_left(used) == sorted(used)
    assert other.regions_left(used) == []
    assert two.leaves_shm_when_killed
    assert not one.leaves_shm_when_killed

    assert two.stop() == 0

    assert one.regions_left(used) == two.regions_left(used) == []
    assert infer(one.endpoints.http, "echo", "x") == "x"


def test_a_server_on_the_hosts_shm(
    launch: Launch, make_launcher: Callable[..., ContainerLauncher]
) -> None:
    server = launch(model("echo"), of=make_launcher(ipc="host"))
    assert server.shm_prefix is not None
    used = server.regions_of(server.processes())
    assert set(regions(server.shm_prefix)) == used

    server.kill()  # so that it cannot clean up

    assert not regions(server.shm_prefix)
    assert server.stop_report is not None
    assert set(server.stop_report.swept) == used


def test_a_script_in_the_servers_python(launcher: ContainerLauncher, docker_client: Any) -> None:
    script = "import sys, torch; print(sys.argv[1:], torch.__version__); sys.exit(3)"
    done = launcher.run_python(script, ["a b"], timeout=60)
    assert done.stdout.startswith("['a b'] 2.")
    assert done.returncode == 3
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.run_python("import time; time.sleep(60)", timeout=1)
    assert containers(docker_client, launcher.run_id) == []


# -- failures --------------------------------------------------------------------------------------


def test_dies_while_loading(
    launch: Launch, launcher: ContainerLauncher, docker_client: Any
) -> None:
    def kill(line: str) -> None:
        if line == "loading model slow":
            (name,) = containers(docker_client, launcher.run_id)
            docker_client.containers.get(name).kill()

    start = time.monotonic()
    with pytest.raises(ServerFailed) as caught:
        launch(model("slow", SLOW_LOAD), progress=kill)

    assert time.monotonic() - start < 20
    assert "was killed by signal 9 before it was ready" in str(caught.value)
    assert "loading: slow" in caught.value.log_tail
    assert caught.value.command.startswith("docker run ")
    assert containers(docker_client, launcher.run_id) == []


def test_dies_after_loading(launch: Launch) -> None:
    server = launch(model("echo"))

    server.send_signal(signal.SIGKILL)

    assert eventually(lambda: not server.is_running())
    assert server.exit_code() == -signal.SIGKILL
    assert server.processes() == []
    server.send_signal(signal.SIGTERM)  # to nobody: harmless


def test_dies_while_it_answers(launch: Launch) -> None:
    server = launch(model("slow", SLOW_ANSWER))
    threading.Timer(1.0, server.send_signal, [signal.SIGKILL]).start()

    start = time.monotonic()
    with pytest.raises(httpx.TransportError):
        infer(server.endpoints.http, "slow", "x", timeout=60)

    assert time.monotonic() - start < 15
    assert eventually(lambda: not server.is_running())


def test_a_full_shm(
    launch: Launch, make_launcher: Callable[..., ContainerLauncher], docker_client: Any
) -> None:
    small = make_launcher(shm_size="16m")
    big = "--backend-config=python,shm-default-byte-size=33554432"

    with pytest.raises(ServerFailed) as caught:
        launch(model("echo"), of=small, args=(big,))

    assert "shared memory" in str(caught.value)
    assert "--shm-size=16m" in caught.value.command
    assert containers(docker_client, small.run_id) == []


def test_a_wrong_flag(launch: Launch) -> None:
    with pytest.raises(ServerFailed, match=r"ended with exit code 1") as caught:
        launch(model("echo"), args=("--no-such-flag",))
    assert "--no-such-flag" in caught.value.log_tail
    assert caught.value.command


def test_an_image_without_tritonserver(launch: Launch) -> None:
    with pytest.raises(UserError, match="has no tritonserver on its PATH"):
        launch(model("echo"), env={"PATH": "/usr/bin:/bin"})


@contextlib.contextmanager
def changed(client: Any, image: str, command: str) -> Iterator[str]:
    """The image after a shell command."""
    tag = f"pytest-vllm-triton-test:{os.getpid()}"
    box = client.containers.run(image, ["sh", "-ec", command], detach=True)
    try:
        assert box.wait(timeout=60)["StatusCode"] == 0, box.logs()
        box.commit(*tag.split(":"))
    finally:
        box.remove(force=True)
    try:
        yield tag
    finally:
        client.images.remove(tag, force=True)


VLLM_MODEL = ModelSpec(
    "m", '{"model": "x"}', 'backend: "vllm"\ninstance_group [{ kind: KIND_MODEL }]'
)


def test_an_image_without_the_backend(
    launch: Launch, make_launcher: Callable[..., ContainerLauncher], docker_client: Any, image: str
) -> None:
    folder = "/opt/tritonserver/backends/vllm"
    expected = f"has no vLLM backend in {folder}: leave out"
    with (
        changed(docker_client, image, f"rm -r {folder}") as tag,
        pytest.raises(ServerFailed, match=expected),
    ):
        launch(VLLM_MODEL, of=make_launcher(image=tag), backend_dir=None)


def test_an_image_with_a_vllm_that_the_backend_does_not_know(
    launch: Launch, make_launcher: Callable[..., ContainerLauncher], docker_client: Any, image: str
) -> None:
    vllm = "/opt/pytest-vllm-triton/runtimes/*/venv/lib/*/site-packages/vllm"
    expected = r"vLLM \S+ is not supported by this backend"
    with (
        changed(docker_client, image, f"rm {vllm}/v1/engine/exceptions.py") as tag,
        pytest.raises(ServerFailed, match=expected) as caught,
    ):
        launch(VLLM_MODEL, of=make_launcher(image=tag), backend_dir=assets.backend_dir())
    assert caught.value.log_tail


def test_an_image_that_does_not_exist(make_launcher: Callable[..., ContainerLauncher]) -> None:
    with pytest.raises(UserError, match="no-such-image:1 is not here and cannot be pulled"):
        make_launcher(image="localhost:1/no-such-image:1").prepare()


def test_a_gpu_that_docker_cannot_give(
    launch: Launch,
    make_launcher: Callable[..., ContainerLauncher],
    docker_client: Any,
) -> None:
    if "nvidia" in docker_client.info()["Runtimes"]:
        pytest.skip("Docker has NVIDIA's runtime here")
    launcher = make_launcher(gpus="all")
    with pytest.raises(UserError, match=r"NVIDIA Container Toolkit.*--triton-gpus none"):
        launch(model("echo"), of=launcher)
    assert containers(docker_client, launcher.run_id) == []


# -- nothing is left -------------------------------------------------------------------------------


@pytest.fixture
def victim(
    image: str, tmp_path: Path, backend_dir: Path, request: pytest.FixtureRequest
) -> Iterator[Victim]:
    code, when, ipc = request.param
    given = {
        "image": image,
        "ipc": ipc,
        "work_dir": str(tmp_path / "victim"),
        "backend_dir": str(backend_dir),
        "config": CONFIG,
        "code": code,
        "when": when,
    }
    with started("container_orphan_maker.py", given) as victim:
        yield victim


@pytest.mark.parametrize(
    "victim",
    [
        (ECHO, "serving", "private"),
        (ECHO, "serving", "host"),
        (SLOW_LOAD, "booting", "private"),
    ],
    ids=["serving", "serving on the host's shm", "booting"],
    indirect=True,
)
def test_ctrl_c_leaves_nothing(victim: Victim, docker_client: Any) -> None:
    facts = victim.facts()
    assert containers(docker_client, facts["run"])

    victim.kill(signal.SIGINT)

    assert containers(docker_client, facts["run"]) == []
    assert not regions(facts["prefix"])
    for name in ("guard", "supervisor"):
        assert eventually(lambda name=name: not psutil.pid_exists(facts[name])), name  # type: ignore[misc]


@pytest.mark.parametrize(
    "victim",
    [
        (ECHO, "serving", "private"),
        (ECHO, "serving", "host"),
        (SLOW_LOAD, "booting", "private"),
        (ECHO, "exit", "private"),
    ],
    ids=["serving", "serving on the host's shm", "booting", "forgotten"],
    indirect=True,
)
def test_sigkill_leaves_nothing_for_long(victim: Victim, docker_client: Any) -> None:
    facts = victim.facts()
    victim.program.kill()

    assert eventually(lambda: not containers(docker_client, facts["run"]), 20)
    assert eventually(lambda: not regions(facts["prefix"]))


@pytest.mark.parametrize(
    "victim", [(ECHO, "serving", "private"), (ECHO, "serving", "host")], indirect=True
)
def test_what_survives_the_guard_goes_at_the_next_start(
    victim: Victim, launcher: ContainerLauncher, docker_client: Any
) -> None:
    facts = victim.facts()
    # The guard first: it would go to work on the supervisor's death.
    for pid in (facts["guard"], facts["supervisor"], victim.program.pid):
        os.kill(pid, signal.SIGKILL)
    victim.program.wait(10)
    (left,) = containers(docker_client, facts["run"])
    told: list[str] = []

    launcher.prepare(told.append)

    assert told == [f"removed {left}, which an earlier run had left"]
    assert containers(docker_client, facts["run"]) == []
    assert not regions(facts["prefix"])


@pytest.mark.parametrize("victim", [(ECHO, "serving", "private")], indirect=True)
def test_the_servers_of_the_living_stay(
    victim: Victim, launcher: ContainerLauncher, docker_client: Any
) -> None:
    facts = victim.facts()

    launcher.prepare()

    assert len(containers(docker_client, facts["run"])) == 1


# -- images ----------------------------------------------------------------------------------------


def test_option_1_puts_our_backend_in_place_of_the_images(
    docker_client: Any, image: str, tmp_path: Path
) -> None:
    shutil.copy(assets.fixtures_dir() / "images" / "nvidia-vllm" / "Dockerfile", tmp_path)
    backend = copy_backend(assets.backend_dir(), tmp_path / "backend")
    (backend / "mark.py").write_text("# this very copy\n")
    tag = f"pytest-vllm-triton-test:{os.getpid()}"
    arguments = {"IMAGE": image}
    docker_client.images.build(path=str(tmp_path), tag=tag, buildargs=arguments, rm=True)
    try:
        folder = "/opt/tritonserver/backends/vllm"
        listed = docker_client.containers.run(tag, ["find", folder, "-type", "f"], remove=True)
        there = {line.removeprefix(f"{folder}/") for line in listed.decode().splitlines()}
        assert there == {str(p.relative_to(backend)) for p in backend.rglob("*") if p.is_file()}
    finally:
        docker_client.images.remove(tag, force=True)


def test_the_cpu_image_is_laid_out_as_nvidias(docker_client: Any, image: str) -> None:
    script = "command -v tritonserver; ls /opt/tritonserver/backends; env; ls -A /mnt /root /tmp"
    said = docker_client.containers.run(image, ["sh", "-c", script], remove=True).decode()
    lines = said.splitlines()
    assert lines[:3] == ["/opt/tritonserver/bin/tritonserver", "python", "vllm"]
    # Nothing of the settings of the host that built it.
    assert "PIP_" not in said
    assert "PYTHONPATH" not in said
    assert not any(line.startswith(("http_proxy", "HTTPS_PROXY")) for line in lines)
    size = docker_client.images.get(image).attrs["Size"]
    assert size < 6e9


# -- pytest itself ---------------------------------------------------------------------------------


@pytest.fixture
def suite_run(image: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of the suite in containers, whose first server is being booted."""
    words = ["-m", "pytest", "--vllm-model=known-answer", f"--triton-image={image}"]
    with subprocess.Popen(
        [sys.executable, "-u", *words, "--triton-gpus=none", "--basetemp=work", "-k=test_greedy"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("loading model"):
                break
        yield run
        run.kill()


def runs(folder: Path) -> list[str]:
    """The ids of the launchers that worked in a folder."""
    configs = folder.glob("work/triton[0-9]*/guard-*/supervisor.json")
    return [json.loads(config.read_text())["command"][-1] for config in configs]


def test_ctrl_c_in_pytest(
    suite_run: subprocess.Popen[str], tmp_path: Path, docker_client: Any
) -> None:
    (run,) = runs(tmp_path)
    assert len(containers(docker_client, run)) == 1

    suite_run.send_signal(signal.SIGINT)

    output, _ = suite_run.communicate(timeout=60)
    assert suite_run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "Traceback" not in output
    assert containers(docker_client, run) == []


def test_pytest_is_killed(
    suite_run: subprocess.Popen[str], tmp_path: Path, docker_client: Any
) -> None:
    (run,) = runs(tmp_path)
    assert len(containers(docker_client, run)) == 1

    suite_run.kill()

    assert eventually(lambda: not containers(docker_client, run), 20)
