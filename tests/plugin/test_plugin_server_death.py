"""A server that dies in the middle of a run is named as the cause, and the other checks go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from plugin_helpers import environment

QUICK = Path(__file__).with_name("quick_backend")

PREAMBLE = """
import signal
import time
import pytest
from pytest_vllm_triton.clients import GenerateRequest

def kill(server, number=signal.SIGKILL):
    server.main_process().send_signal(number)
    deadline = time.monotonic() + 30
    while server.exit_code() is None and time.monotonic() < deadline:
        time.sleep(0.1)
"""

DEATHS = """

@pytest.fixture(scope="session")
def address(vllm_server):
    yield vllm_server.endpoints.http
    assert vllm_server.exit_code() is None, "a fixture that cannot clean up any more"

@pytest.mark.requirement("GEN-001")
def test_before(triton_http, address):
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-002")
def test_death(vllm_server, triton_http):
    kill(vllm_server)
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-003")
def test_after(vllm_server, triton_http, address):
    triton_http.generate(GenerateRequest("Say alpha")).ok()
    assert address == vllm_server.endpoints.http

@pytest.mark.requirement("GEN-004")
def test_quiet_death(vllm_server):
    kill(vllm_server)

@pytest.mark.requirement("GEN-005")
def test_finds_it_dead(triton_http):
    pass

@pytest.mark.requirement("GEN-006")
def test_after_quiet_death(triton_http):
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-007")
def test_third_death(vllm_server, triton_http):
    kill(vllm_server)
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-008")
def test_after_third_death(triton_http):
    pass

@pytest.mark.requirement("GEN-009")
def test_long_after_third_death(triton_http):
    pass

@pytest.mark.requirement("GEN-010")
def test_without_server():
    pass
"""

CRASHES = """
BAD = GenerateRequest("Say alpha", sampling={"temperature": -1})
asked = []

@pytest.fixture(scope="session")
def address(vllm_server):
    return vllm_server.endpoints.http

@pytest.mark.parametrize("status", ["INVALID_ARGUMENT"])
@pytest.mark.requirement("GEN-001")
def test_once(vllm_server, triton_grpc, address, status):
    assert address == vllm_server.endpoints.http
    asked.append(address)
    if len(asked) == 1:
        kill(vllm_server, signal.SIGSEGV)
        triton_grpc.until_error(BAD)
        assert False, "not on this server"
    assert triton_grpc.until_error(BAD).status == status

@pytest.mark.requirement("GEN-002")
def test_in_another_mode(vllm_server, triton_grpc):
    kill(vllm_server, signal.SIGSEGV)
    triton_grpc.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-003")
def test_each_time(vllm_server, triton_grpc):
    kill(vllm_server, signal.SIGSEGV)
    answer = triton_grpc.until_error(BAD)
    assert answer.status == "INVALID_ARGUMENT"

@pytest.mark.requirement("GEN-004")
def test_how_often():
    assert len(set(asked)) == len(asked) == 2
"""

CANCELS = """
LONG = GenerateRequest("Say alpha", stream=True, sampling={"max_tokens": 500, "ignore_eos": True})

@pytest.mark.requirement("GEN-001")
def test_cancel(vllm_server, triton_grpc):
    with triton_grpc.open() as stream:
        stream.send(LONG)
        next(iter(stream))
        stream.cancel()
    kill(vllm_server, signal.SIGSEGV)

@pytest.mark.requirement("GEN-002")
def test_after_a_cancel(triton_http):
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-003")
def test_to_the_end(vllm_server, triton_grpc):
    triton_grpc.generate(LONG).ok()
    kill(vllm_server, signal.SIGSEGV)

@pytest.mark.requirement("GEN-004")
def test_after_the_end(triton_http):
    pass
"""


def test_crash_after_a_cancel_is_tritons_own(tmp_path: Path) -> None:
    """One after a stream that came to its end is not."""
    done, report = _run(tmp_path, CANCELS)
    rows = {row["id"]: row for row in report["requirements"] if row["checks"]}
    assert _verdicts(rows) == {
        "GEN-001": "PASS",
        "GEN-002": "PASS",
        "GEN-003": "PASS",
        "GEN-004": "ERROR",
    }, done.stdout
    said = "Triton itself crashed before test_after_a_cancel, which gets a new server"
    assert said in done.stdout
    (check,) = rows["GEN-004"]["checks"]
    assert check["reason"] == "The server was killed by signal 11 before test_after_the_end."


def test_crash_of_tritons_own_is_not_the_backends(tmp_path: Path) -> None:
    """But one in another mode is, and one that comes again."""
    done, report = _run(tmp_path, CRASHES)
    rows = {row["id"]: row for row in report["requirements"] if row["checks"]}
    assert _verdicts(rows) == {
        "GEN-001": "PASS",
        "GEN-002": "FAIL",
        "GEN-003": "FAIL",
        "GEN-004": "PASS",
    }, done.stdout
    (check,) = rows["GEN-003"]["checks"]
    assert check["reason"].startswith("The server was killed by signal 11 during test_each_time.")
    said = "Triton itself crashed during test_once[INVALID_ARGUMENT]: again, on a new server"
    assert said in done.stdout
    assert "Triton itself crashed during test_in_another_mode" not in done.stdout


def test_death_is_named_and_the_server_replaced_twice(tmp_path: Path) -> None:
    done, report = _run(tmp_path, DEATHS)
    rows = {row["id"]: row for row in report["requirements"] if row["checks"]}
    assert _verdicts(rows) == {
        "GEN-001": "PASS",
        "GEN-002": "FAIL",
        "GEN-003": "PASS",
        "GEN-004": "PASS",
        "GEN-005": "ERROR",
        "GEN-006": "PASS",
        "GEN-007": "FAIL",
        "GEN-008": "ERROR",
        "GEN-009": "ERROR",
        "GEN-010": "PASS",
    }, done.stdout

    def reason(key: str) -> str:
        (check,) = rows[key]["checks"]
        return str(check["reason"])

    assert "The server was killed by signal 9 during test_death." in reason("GEN-002")
    assert reason("GEN-005") == "The server was killed by signal 9 before test_finds_it_dead."
    said = "The server was killed by signal 9 during test_third_death."
    assert said in reason("GEN-007")
    assert reason("GEN-008") == reason("GEN-009") == said
    purpose = "shared by all checks that can share"
    again = f"{purpose}, after the one before had ended"
    assert [boot["purpose"] for boot in report["boots"]] == [purpose, again, again]


def _run(folder: Path, tests: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    (folder / "test_it.py").write_text(PREAMBLE + tests)
    # A real Triton; what the model would be is of no matter, and vLLM takes long to load.
    options = ("--vllm-model=known-answer", f"--triton-backend-dir={QUICK}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *options,
            "--conformance-report=r.json",
            "test_it.py",
        ],
        cwd=folder,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=900,
    )
    return done, json.loads((folder / "r.json").read_text(encoding="utf-8"))


def _verdicts(rows: dict[str, Any]) -> dict[str, str]:
    return {key: row["verdict"] for key, row in rows.items()}
