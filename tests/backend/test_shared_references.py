"""Who of several processes frees what they share."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_triton_backend.shared_references import SharedReference

BACKEND = Path(__file__).resolve().parents[2] / "backend"

#: Acquires the reference, says so, and releases it when it is told to.
OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from vllm_triton_backend.shared_references import SharedReference
reference = SharedReference(bytes.fromhex(sys.argv[2]).decode())
with reference.acquiring():
    pass
print("acquired", flush=True)
sys.stdin.readline()
with reference.releasing() as last:
    print(last, flush=True)
"""


@pytest.fixture
def name() -> str:
    return f"\0test-references-{uuid.uuid4().hex}"


@pytest.fixture
def other(name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OTHER, str(BACKEND), name.encode().hex()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "acquired\n"
        yield process
        process.kill()


def test_the_only_one_is_the_last(name: str) -> None:
    reference = SharedReference(name)
    for _ in range(2):
        with reference.acquiring():
            pass
        with reference.releasing() as last:
            assert last


def test_the_last_of_two_frees(name: str, other: subprocess.Popen[str]) -> None:
    reference = SharedReference(name)
    with reference.acquiring():
        pass
    with reference.releasing() as last:
        assert not last
    assert other.communicate("go\n", timeout=30)[0] == "True\n"


def test_a_killed_process_has_nothing_any_more(name: str, other: subprocess.Popen[str]) -> None:
    reference = SharedReference(name)
    with reference.acquiring():
        pass
    other.kill()
    other.wait(30)
    with reference.releasing() as last:
        assert last


def test_another_name_is_another_thing(name: str, other: subprocess.Popen[str]) -> None:
    reference = SharedReference(f"{name}x")
    with reference.acquiring():
        pass
    with reference.releasing() as last:
        assert last


def test_what_could_not_be_made_is_not_had(name: str) -> None:
    """An error while the reference is acquired gives it back: nobody will release it."""
    mine = SharedReference(name)
    with pytest.raises(ValueError, match="cannot be made"), mine.acquiring():
        raise ValueError("cannot be made")
    other = SharedReference(name)
    with other.acquiring():
        pass
    with other.releasing() as last:
        assert last
