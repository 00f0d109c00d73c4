"""The container launcher's parts that need no Docker: what is asked for, said, shown and hidden."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests
from waiting import eventually

from pytest_vllm_triton.errors import ServerFailed, UserError
from pytest_vllm_triton.gpus import host_has_gpu
from pytest_vllm_triton.launchers import container_probe, docker_engine, leftovers
from pytest_vllm_triton.launchers.base import ModelSpec, ServerSpec
from pytest_vllm_triton.launchers.choice import choose
from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions
from pytest_vllm_triton.launchers.container_log import exit_code
from pytest_vllm_triton.launchers.container_probe import ContainerProbe, ContainerSnapshot
from pytest_vllm_triton.launchers.docker_run import ContainerRun, GpuRequest, Mount
from pytest_vllm_triton.launchers.leftovers import Owner
from pytest_vllm_triton.launchers.redact import Redactor, is_secret
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE, LauncherKind
from pytest_vllm_triton.options.settings import Settings
from pytest_vllm_triton.options.values import BackendSource
from pytest_vllm_triton.session.state import SETTINGS

SECRET = "hf_1234567890"
RUN = ContainerRun(
    image="triton:1",
    command=("tritonserver", "--model-repository=/a b"),
    environment={"HF_TOKEN": SECRET, "LANG": "C"},
    mounts=(Mount(Path("/models"), "/models"), Mount(Path("/hub"), "/hub", writable=True)),
    ports={8000: 49153, 8001: None},
)


# -- the line --------------------------------------------------------------------------------------


def test_command_line_equals_the_request() -> None:
    words = RUN.command_line()
    assert words == [
        *("docker", "run", "--rm", "--shm-size=1G"),
        *("--ulimit=memlock=-1", "--ulimit=stack=67108864"),
        *("--publish=127.0.0.1:49153:8000", "--publish=127.0.0.1::8001"),
        "--mount=type=bind,source=/models,target=/models,readonly",
        "--mount=type=bind,source=/hub,target=/hub",
        *("--env=HF_TOKEN", "--env=LANG=C"),
        *("triton:1", "tritonserver", "--model-repository=/a b"),
    ]
    given = RUN.arguments()
    assert given["image"] == "triton:1"
    assert given["command"] == ["tritonserver", "--model-repository=/a b"]
    assert given["environment"] == {"HF_TOKEN": SECRET, "LANG": "C"}
    assert given["ports"] == {"8000/tcp": ("127.0.0.1", 49153), "8001/tcp": ("127.0.0.1", None)}
    assert (given["ipc_mode"], given["shm_size"]) == ("shareable", "1g")
    assert [(limit["Name"], limit["Soft"], limit["Hard"]) for limit in given["ulimits"]] == [
        ("stack", 67108864, 67108864),
        ("memlock", -1, -1),
    ]
    assert [(m["Source"], m["Target"], m["ReadOnly"]) for m in given["mounts"]] == [
        ("/models", "/models", True),
        ("/hub", "/hub", False),
    ]


def test_command_line_survives_a_shell() -> None:
    run = replace(RUN, gpus=GpuRequest(("0", "1")))
    assert shlex.split(shlex.join(run.command_line())) == run.command_line()


def test_without_unlimited_locked_memory() -> None:
    run = replace(RUN, memlock=False)
    assert not any("memlock" in word for word in run.command_line())
    assert [limit["Name"] for limit in run.arguments()["ulimits"]] == ["stack"]


@pytest.mark.parametrize("ipc", ["host", "container:abc"])
def test_shared_memory_of_others(ipc: str) -> None:
    run = replace(RUN, ipc=ipc)
    assert f"--ipc={ipc}" in run.command_line()
    assert not any("shm-size" in word for word in run.command_line())
    assert (run.arguments()["ipc_mode"], run.arguments()["shm_size"]) == (ipc, None)


@pytest.mark.parametrize(
    ("gpus", "words", "requests"),
    [
        (GpuRequest(), [], []),
        (GpuRequest(("all",)), ["--gpus=all"], [("", -1, [], [["gpu"]])]),
        (GpuRequest(("0", "1")), ['--gpus="device=0,1"'], [("", 0, ["0", "1"], [["gpu"]])]),
        (
            GpuRequest(("0",), cdi=True),
            ["--device=nvidia.com/gpu=0"],
            [("cdi", 0, ["nvidia.com/gpu=0"], [])],
        ),
    ],
)
def test_gpus(gpus: GpuRequest, words: list[str], requests: list[tuple[Any, ...]]) -> None:
    assert gpus.words() == words
    asked = [(r["Driver"], r["Count"], r["DeviceIDs"], r["Capabilities"]) for r in gpus.requests()]
    assert asked == requests


NVIDIA = {"Runtimes": {"nvidia": {}, "runc": {}}}
CDI = {"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}]}
BIN = f"--triton-server-bin={sys.executable}"


@pytest.mark.parametrize(
    ("wanted", "info", "has_gpu", "request_"),
    [
        (None, NVIDIA, True, GpuRequest(("all",))),
        (None, NVIDIA, False, GpuRequest()),
        (None, CDI, True, GpuRequest(("all",), cdi=True)),
        ("none", CDI, True, GpuRequest()),
        ("0,1", NVIDIA, False, GpuRequest(("0", "1"))),
        ("1", {**CDI, **NVIDIA}, True, GpuRequest(("1",))),
        ("all", {"Runtimes": {"runc": {}}}, True, GpuRequest(("all",))),
    ],
)
def test_which_gpus(wanted: str, info: dict[str, Any], has_gpu: bool, request_: GpuRequest) -> None:
    assert docker_engine.gpu_request(wanted, info, has_gpu=has_gpu) == request_


def test_cdi_files_are_found(tmp_path: Path) -> None:
    info = {"Runtimes": {}, "CDISpecDirs": [str(tmp_path), str(tmp_path / "missing")]}
    assert not docker_engine.gpu_request("all", info, has_gpu=True).cdi
    (tmp_path / "nvidia.yaml").touch()
    assert docker_engine.gpu_request("all", info, has_gpu=True).cdi


def test_gpus_of_this_host(tmp_path: Path) -> None:
    assert not host_has_gpu(tmp_path)
    (tmp_path / "nvidia-caps").touch()
    assert not host_has_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert host_has_gpu(tmp_path)


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("OPENAI_API_KEY", True),
        ("NGC_APIKEY", True),
        ("db_password", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("HF_HOME", False),
        ("KEYBOARD", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_secrets_do_not_show_in_texts() -> None:
    redactor = Redactor({"HF_TOKEN": SECRET, "A_TOKEN": SECRET + "x", "B_TOKEN": "1"})
    assert redactor.text(f"1 Bearer {SECRET}, {SECRET}x") == "1 Bearer ***, ***"
    assert redactor.line(f"é {SECRET}\n".encode()) == "é ***\n".encode()


def test_secrets_do_not_show_in_the_line() -> None:
    assert SECRET not in " ".join(RUN.command_line())


# -- errors in one sentence ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        ("('Connection aborted.', PermissionError(13, 'Permission denied'))", ["usermod -aG"]),
        ("('Connection aborted.', FileNotFoundError(2, 'No such file'))", ["not run", "systemctl"]),
        ("ConnectionRefusedError(111, 'Connection refused')", ["not run", "DOCKER_HOST"]),
        ("500 Server Error:\nboom", ["does not answer: 500 Server Error:", "docker version"]),
    ],
)
def test_no_connection(error: str, parts: list[str]) -> None:
    said = docker_engine.no_connection(error)
    assert "\n" not in said
    for part in [*parts, "--triton-launcher process"]:
        assert part in said


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ("pull access denied for x, repository does not exist", "docker login"),
        ("unauthorized: authentication required", "docker login"),
        ("manifest unknown", "check the name and the tag"),
        ("Get https://r/v2/: dial tcp: lookup r: no such host", "check the network"),
    ],
)
def test_no_image(error: str, part: str) -> None:
    said = docker_engine.no_image("x:1", error)
    assert "x:1" in said
    assert part in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "Container Toolkit"),
        ("CDI device injection failed: unresolvable CDI devices x", "--triton-gpus"),
        ("nvidia-container-cli: device error: 7: unknown device: unknown", "--triton-gpus"),
        ('exec: "tritonserver": executable file not found in $PATH', "no tritonserver"),
        ("invalid mount config: bind source path does not exist: /x", "does not see a folder"),
        ("something else: unknown", "could not start a container of i: something else."),
    ],
)
def test_no_start(error: str, part: str) -> None:
    said = docker_engine.no_start("i", error)
    assert part in said
    assert "\n" not in said


def test_refused_limits() -> None:
    error = "OCI runtime create failed: error setting rlimit type 8: operation not permitted"
    assert docker_engine.refused_limit(error) == "memlock"
    assert docker_engine.refused_limit(error.replace("8", "3")) == "stack"
    assert docker_engine.refused_limit("OCI runtime create failed") is None


def test_bridge_address() -> None:
    here = {"IPAddress": "10.9.8.7", "Gateway": "127.0.0.1"}
    elsewhere = {"IPAddress": "172.17.0.2", "Gateway": "203.0.113.1"}
    ended = {"IPAddress": "", "Gateway": "127.0.0.1"}
    for networks, expected in (
        ({"bridge": here}, "10.9.8.7"),
        ({"bridge": elsewhere, "mine": here}, "10.9.8.7"),
        ({"bridge": elsewhere}, None),
        ({"bridge": ended}, None),
        ({}, None),
    ):
        assert docker_engine.bridge_address({"Networks": networks}) == expected


def test_pull_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(docker_engine, "TELL_SECONDS", 0.0)
    progress = docker_engine.PullProgress("x:1", told.append)
    half = {"current": 500_000_000, "total": 1_000_000_000}
    progress.note({"status": "Downloading", "id": "a", "progressDetail": half})
    progress.note({"status": "Downloading", "id": "b", "progressDetail": half})
    progress.note({"status": "Download complete", "id": "a", "progressDetail": {}})
    progress.note({"status": "Extracting", "id": "a", "progressDetail": {"current": 1, "total": 2}})
    assert told[1:3] == [
        "pulling x:1: 1.0 of 2.0 GB so far",
        "pulling x:1: 1.5 of 2.0 GB so far",
    ]
    assert told[3] == told[2]


def test_pull_of_which_no_layer_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(docker_engine, "TELL_SECONDS", 0.0)
    progress = docker_engine.PullProgress("x:1", told.append)
    progress.note({"status": "Pulling from x", "id": "1"})
    assert told == ["pulling x:1"]


def test_daemon_that_goes_away_during_a_pull() -> None:
    """The Docker SDK lets the errors of its HTTP library through."""

    class Gone:
        def get(self, name: str) -> None:
            raise requests.exceptions.ReadTimeout("read timed out")

        images = property(lambda self: self)

    with pytest.raises(UserError, match=r"image x:1 .* cannot be pulled \(read timed out\)"):
        docker_engine.ensure_image(Gone(), "x:1", print)


def test_a_failure_shows_how_to_try_by_hand() -> None:
    text = str(ServerFailed("It died.", "the log", "docker run x"))
    assert text.splitlines() == [
        "It died.",
        "The server's last log lines:",
        "the log",
        "To start it by hand:",
        "docker run x",
    ]


# -- whose container is it -------------------------------------------------------------------------


def test_owners_that_live_and_died() -> None:
    us = Owner.of(os.getpid())
    assert us.started
    assert not us.is_dead()
    assert Owner.read(us.label()) == us
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child = Owner.of(ended.pid)
    assert not child.is_dead()
    ended.kill()
    ended.wait()
    assert child.is_dead()
    # The same number, another process.
    assert us._replace(started="1").is_dead()
    assert us._replace(boot="before the last start").is_dead()
    # What cannot be known from here is not dead.
    assert not child._replace(machine="another host").is_dead()
    assert not child._replace(namespace="pid:[1]").is_dead()


def test_a_zombie_is_dead() -> None:
    zombie = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    owner = Owner.of(zombie.pid)
    assert zombie.stdout is not None
    zombie.stdout.read()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert owner.is_dead()
    zombie.wait()


@pytest.mark.parametrize("label", ["", "x", "{}", '{"pid": 1}', "[]"])
def test_labels_of_strangers(label: str) -> None:
    assert Owner.read(label) is None


class FakeContainer:
    """What `leftovers` asks of the Docker SDK's container."""

    def __init__(self, labels: dict[str, str], ipc: str = "private") -> None:
        self.labels = labels
        self.attrs = {"HostConfig": {"IpcMode": ipc}}
        self.name = "some-name"
        self.removed: list[dict[str, bool]] = []

    def remove(self, **how: bool) -> None:
        self.removed.append(how)


class FakeClient:
    def __init__(self, *containers: FakeContainer) -> None:
        self.containers = self
        self.present = containers
        self.asked: list[dict[str, Any]] = []

    def list(self, **how: Any) -> list[FakeContainer]:
        self.asked.append(how)
        return list(self.present)


def test_sweep_removes_those_of_the_dead_only() -> None:
    ours = FakeContainer(leftovers.labels("run", "p_"))
    dead_owner = Owner.of(os.getpid())._replace(started="1")
    dead = FakeContainer({**ours.labels, leftovers.OWNER_LABEL: dead_owner.label()})
    strange = FakeContainer({leftovers.RUN_LABEL: "x", leftovers.OWNER_LABEL: "?"})
    client = FakeClient(ours, dead, strange)

    assert leftovers.sweep(client) == ["some-name"]

    assert dead.removed == [{"force": True, "v": True}]
    assert not ours.removed
    assert not strange.removed
    # Stopped ones too.
    assert client.asked[0]["all"] is True


def test_regions_left_on_the_host_go_with_their_container() -> None:
    prefix = f"pvt_test{os.getpid()}_"
    region = Path("/dev/shm", f"{prefix}x")
    region.write_bytes(b"x")
    try:
        leftovers.remove(FakeContainer({leftovers.PREFIX_LABEL: prefix}))
        assert region.exists(), "a container with a /dev/shm of its own has none here"
        with region.open("rb"):
            leftovers.remove(FakeContainer({leftovers.PREFIX_LABEL: prefix}, ipc="host"))
            assert region.exists(), "somebody uses it"
        swept = leftovers.remove(FakeContainer({leftovers.PREFIX_LABEL: prefix}, ipc="host"))
        assert swept == [region.name]
        assert not region.exists()
    finally:
        region.unlink(missing_ok=True)


# -- what is seen inside ---------------------------------------------------------------------------


def seen(pid: int, parent: int, state: str = "S") -> dict[str, Any]:
    facts = {"pid": pid, "parent": parent, "state": state, "started": pid, "name": f"n{pid}"}
    return {
        **facts,
        "words": [],
        "regions": [f"r{pid}"],
        "files": 1,
        "threads": 1,
        "rss": 1,
        "cpu": [0, 0],
    }


def test_the_looker_is_no_process_of_the_server() -> None:
    processes = [seen(1, 0), seen(2, 1), seen(3, 2), seen(9, 0), seen(10, 9)]
    snapshot = ContainerSnapshot.of({"processes": processes, "shm": ["r2"]})
    assert set(snapshot.processes) == {1, 2, 3}
    assert snapshot.shm == {"r2"}


class ThisHost:
    """A container as far as `ContainerProbe` runs scripts in it; they run here."""

    def exec_run(self, command: list[str], **_: Any) -> Any:
        assert command[0] == "python3"
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False)
        return SimpleNamespace(exit_code=done.returncode, output=(done.stdout, done.stderr))


def test_what_the_looker_tells_of_a_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(container_probe, "MAIN_PROCESS", os.getpid())
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"]) as sleeping:
        assert eventually(lambda: psutil.Process(sleeping.pid).cmdline()[:1] == [str(program)])
        processes = ContainerProbe(ThisHost()).look().processes
        sleeping.kill()
    us, child, there = processes[os.getpid()], processes[sleeping.pid], psutil.Process()
    assert child.parent == us.pid
    assert (child.name, child.words) == (program.name, (str(program), "600"))
    assert us.name == there.name()
    assert us.threads == there.num_threads()
    assert us.rss > 2**20
    assert 0 < us.cpu.user <= there.cpu_times().user
    assert us.started < child.started
    assert str(us.started) == Owner.of(us.pid).started


def test_nothing_is_seen_of_an_ended_container() -> None:
    assert not ContainerSnapshot().processes
    assert not ContainerSnapshot().shm


@pytest.mark.parametrize(
    ("status", "code"),
    [(0, 0), (1, 1), (127, 127), (137, -signal.SIGKILL), (139, -signal.SIGSEGV), (255, 255)],
)
def test_exit_codes(status: int, code: int) -> None:
    assert exit_code(status) == code


# -- specifications --------------------------------------------------------------------------------


def test_wrong_specifications_are_refused_before_docker_is_asked(tmp_path: Path) -> None:
    launcher = ContainerLauncher(ContainerOptions("x"), tmp_path / "work")
    model = ModelSpec("m", None, 'backend: "vllm"')
    for spec, part in (
        (ServerSpec((model,), tmp_path, args=("--http-port=1",)), "--http-port"),
        (ServerSpec((model,), tmp_path / "missing"), "does not exist"),
        (ServerSpec((model,), tmp_path), "has no model.py"),
    ):
        with pytest.raises(UserError, match=part):
            launcher.launch(spec, timeout=1.0)
    assert not (tmp_path / "work").exists()


def test_what_containers_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("UNRELATED", "1")
    for name in ("work", "hub", "checkpoints"):
        (tmp_path / name).mkdir()
    launcher = ContainerLauncher(
        ContainerOptions("x"),
        tmp_path / "work",
        [tmp_path / "checkpoints", tmp_path / "missing"],
        tmp_path / "hub",
    )
    run = launcher._run(("tritonserver",), environment={"MORE": "1"})
    assert run.mounts == (
        Mount(tmp_path / "work", f"{tmp_path}/work"),
        Mount(tmp_path / "checkpoints", f"{tmp_path}/checkpoints"),
        Mount(tmp_path / "hub", f"{tmp_path}/hub", writable=True),
    )
    assert run.environment == {
        "HF_TOKEN": SECRET,
        "HF_HUB_CACHE": f"{tmp_path}/hub",
        "MORE": "1",
    }


# -- options and auto ------------------------------------------------------------------------------


@pytest.fixture
def settings(pytester: pytest.Pytester) -> Callable[..., Settings]:
    def parse(*args: str) -> Settings:
        config = pytester.parseconfigure(*args)
        try:
            return config.stash[SETTINGS]
        finally:
            config._ensure_unconfigure()

    return parse


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--triton-image=no image"], "is not the name of an image"),
        (["--triton-image=-x"], "is not the name of an image"),
        (["--triton-gpus=some"], "is not all, none, or GPUs"),
        (["--triton-gpus=0,,1"], "is not all, none, or GPUs"),
        (["--triton-ipc=hots"], "Did you mean 'host'?"),
        (["--triton-shm-size=1T"], "is not a size"),
        (["--triton-shm-size=0"], "is not a size"),
        (["--triton-shm-size=much"], "is not a size"),
        (["--triton-image=x", BIN], "is for launcher process"),
        (["--triton-backend-dir=image"], "needs an image: --triton-image"),
        (["--triton-backend-dir=image", "--triton-launcher=process"], "needs an image"),
    ],
)
def test_wrong_options(settings: Callable[..., Settings], args: list[str], part: str) -> None:
    with pytest.raises(pytest.UsageError) as caught:
        settings(*args)
    assert part in str(caught.value)


def test_the_backend_of_the_image(settings: Callable[..., Settings]) -> None:
    of_image = settings("--triton-image=x", "--triton-backend-dir=image")
    assert of_image.backend_dir is BackendSource.IMAGE
    assert settings("--triton-image=x").backend_dir is None


def auto(settings: Settings, *, gpu: bool, image: bool | None) -> tuple[LauncherKind, str]:
    def find_image(name: str) -> bool:
        assert name == DEFAULT_IMAGE
        if image is None:
            raise UserError("Docker does not run here")
        return image

    choice = choose(settings, has_gpu=lambda: gpu, find_image=find_image)
    return choice.kind, choice.why


@pytest.mark.parametrize(
    ("args", "gpu", "image", "kind", "why"),
    [
        ([], True, True, LauncherKind.CONTAINER, "auto: a GPU, Docker and NVIDIA's image"),
        ([], True, False, LauncherKind.PROCESS, "auto: a GPU, but not the image"),
        ([], True, None, LauncherKind.PROCESS, "auto: a GPU, but no Docker"),
        ([], False, True, LauncherKind.PROCESS, "auto: no GPU on this host"),
        (["--triton-image=x"], False, None, LauncherKind.CONTAINER, "--triton-image"),
        (["--triton-launcher=container"], False, None, LauncherKind.CONTAINER, "asked for"),
        (["--triton-launcher=process"], True, True, LauncherKind.PROCESS, "asked for"),
        (["--triton-url=h:1"], True, True, LauncherKind.ATTACH, "asked for"),
        ([BIN], True, True, LauncherKind.PROCESS, "auto: --triton-server-bin"),
        ([BIN, "--triton-launcher=process"], True, True, LauncherKind.PROCESS, "asked for"),
    ],
)
def test_which_launcher(
    settings: Callable[..., Settings],
    args: list[str],
    gpu: bool,
    image: bool | None,
    kind: LauncherKind,
    why: str,
) -> None:
    chosen, reason = auto(settings(*args), gpu=gpu, image=image)
    assert chosen is kind
    assert reason.startswith(why)
