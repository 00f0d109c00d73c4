"""Specifications, repositories, logs and ports: what all launchers share."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_triton.launchers import repository
from pytest_vllm_triton.launchers.base import ModelSpec, ServerLog, ServerSpec
from pytest_vllm_triton.launchers.flags import flag_value
from pytest_vllm_triton.launchers.ports import reserved_ports
from pytest_vllm_triton.launchers.repository import ServerFolder, write_repository


def test_started_models() -> None:
    models = (ModelSpec("a"), ModelSpec("b"))
    assert ServerSpec(models, Path()).started_models == ("a", "b")
    assert ServerSpec(models, Path(), load=("b",)).started_models == ("b",)
    assert ServerSpec(models, Path(), load=()).started_models == ()
    assert ServerSpec(models, Path(), load=("b",), control_mode="none").started_models == ("a", "b")


def test_a_repository_is_written_byte_for_byte(tmp_path: Path) -> None:
    models = (
        ModelSpec("one", '{"model": ', 'backend: "vllm"\n', version=3),
        ModelSpec("two", None, "", files={"1/model.py": b"\xff\r\n", "lora/a.json": b"{}"}),
        ModelSpec("empty"),
    )
    root = write_repository(models, tmp_path / "repository")

    written = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert written == {
        "one/config.pbtxt": b'backend: "vllm"\n',
        "one/3/model.json": b'{"model": ',
        "two/1/model.py": b"\xff\r\n",
        "two/lora/a.json": b"{}",
    }
    assert (root / "empty" / "1").is_dir()


@pytest.mark.parametrize(
    "model",
    [
        ModelSpec("../up"),
        ModelSpec("a/b"),
        ModelSpec(""),
        ModelSpec("m", files={"/etc/x": b""}),
        ModelSpec("m", files={"1/../../x": b""}),
        ModelSpec("m", "{}", files={"1/model.json": b""}),
        ModelSpec("m", files={"a": b"", "./a": b""}),
    ],
)
def test_a_repository_that_makes_no_sense_is_refused(model: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"outside|twice"):
        write_repository([model], tmp_path / "repository")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name: m, m"):
        write_repository([ModelSpec("m"), ModelSpec("m")], tmp_path / "repository")


def test_a_repository_that_was_not_written_as_asked_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    monkeypatch.setattr(
        repository.Path, "write_bytes", lambda path, content: write(path, content[:-1])
    )
    with pytest.raises(RuntimeError, match=r"not what was asked: m/1/model\.json"):
        write_repository([ModelSpec("m", "{}")], tmp_path / "repository")


def test_each_server_has_a_folder_of_its_own(tmp_path: Path) -> None:
    backend = tmp_path / "backend"
    (backend / "__pycache__").mkdir(parents=True)
    (backend / "model.py").write_text("# under test\n")
    spec = ServerSpec((ModelSpec("m", "{}"),), backend)
    first, second = (ServerFolder.create(tmp_path / "work", spec) for _ in range(2))
    assert first.path.parent == second.path.parent == tmp_path / "work"
    assert first.path != second.path
    assert first.shm_prefix != second.shm_prefix
    assert (first.models / "m" / "1" / "model.json").read_text() == "{}"
    assert first.backend == first.backends / "vllm"
    assert [path.name for path in first.backend.iterdir()] == ["model.py"]


def test_a_server_may_bring_its_backend_and_share_a_prefix(tmp_path: Path) -> None:
    spec = ServerSpec((), None, shm_prefix="pvt_chosen_")
    folder = ServerFolder.create(tmp_path, spec)
    assert (folder.backend, folder.shm_prefix) == (None, "pvt_chosen_")


def test_a_log_is_read_from_a_position_on(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    assert (log.position(), log.read(), log.tail(3)) == (0, "", "")
    log.path.write_text("first é\n")
    position = log.position()
    with log.path.open("a") as file:
        file.write("second\n+----+\n| table |\n\nthird\n")
    assert log.read(position) == "second\n+----+\n| table |\n\nthird\n"
    assert log.tail(2) == "second\nthird"
    assert log.tail(10) == "first é\nsecond\nthird"


def test_the_help_text_that_follows_a_wrong_flag_is_left_out(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    log.path.write_text(
        "unrecognized option\nUsage: tritonserver [options]\n  --help\n\tPrint usage\n\n"
        "Memory/Device Management:\nInvalid option value. Got abc\n"
    )
    assert log.tail(5) == "unrecognized option\nInvalid option value. Got abc"
    log.path.write_text("Error:\n\tindented\n")
    assert log.tail(5) == "Error:\n\tindented"


def test_reserved_ports_are_kept_from_others_but_not_from_triton() -> None:
    with reserved_ports(3) as ports:
        assert len(set(ports)) == 3
        for port in ports:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with socket.socket() as triton:
                triton.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                triton.bind(("127.0.0.1", port))
                triton.listen()
                with socket.create_connection(("127.0.0.1", port), timeout=5):
                    pass


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ((), None),
        (("--flag=1",), "1"),
        (("--flag", "2"), "2"),
        (("--flag=1", "--other", "--flag=3"), "3"),
        (("--flagged=1",), None),
        (("--flag",), ""),
    ],
)
def test_flag_value(args: tuple[str, ...], value: str | None) -> None:
    assert flag_value(args, "--flag") == value


def test_the_base_imports_nothing_third_party() -> None:
    """The header of every run that has an option of the suite imports it."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "import pytest_vllm_triton.launchers.base\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'pytest_vllm_triton'}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
