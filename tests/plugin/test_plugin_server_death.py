"""A server that dies in the middle of a run is named as the cause, not each request after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from plugin_helpers import environment

TESTS = """
import pytest
from pytest_vllm_triton.clients import GenerateRequest

@pytest.mark.requirement("GEN-001")
def test_before(triton_http):
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-002")
def test_death(vllm_server, triton_http):
    vllm_server.main_process().kill()
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-003")
def test_after(triton_http):
    triton_http.generate(GenerateRequest("Say alpha")).ok()

@pytest.mark.requirement("GEN-004")
def test_without_server():
    pass
"""


def test_death_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ("--vllm-model=known-answer", "--conformance-report=r.json")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "test_it.py"],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=300,
    )
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in report["requirements"] if row["checks"]}
    verdicts = {key: row["verdict"] for key, row in rows.items()}
    assert verdicts == {
        "GEN-001": "PASS",
        "GEN-002": "FAIL",
        "GEN-003": "ERROR",
        "GEN-004": "PASS",
    }, done.stdout
    said = "The server was killed by signal 9 during test_death."
    assert said in rows["GEN-002"]["checks"][0]["reason"]
    assert rows["GEN-003"]["checks"][0]["reason"] == said
