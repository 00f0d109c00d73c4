"""The README's fixtures in somebody's own tests, which name nothing else of the suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import environment

QUICK = Path(__file__).with_name("quick_backend")
PREAMBLE = """
import pytest
from pytest_vllm_triton.clients import GenerateRequest

REQUEST = GenerateRequest("Say alpha")
"""
OWN_TESTS = {
    "triton_grpc": "assert triton_grpc.generate(REQUEST).text == 'Say alpha'",
    "triton_client": "assert triton_client.generate(REQUEST).text == 'Say alpha'",
    "generate": "assert generate(REQUEST).text == 'Say alpha'",
    "vllm_server_factory": "assert vllm_server_factory({'max_num_seqs': 4}).is_running()",
    "known_answer": "assert known_answer.answer('a', max_tokens=1).text",
}


def run(tests: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_own.py").write_text(PREAMBLE + tests)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "test_own.py", "--vllm-model", "known-answer"),
            *("--triton-launcher=process", "--triton-accelerator=cpu"),
            f"--triton-backend-dir={QUICK}",
        ],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )


@pytest.mark.parametrize("name", OWN_TESTS)
def test_each_fixture_suffices_alone(name: str, tmp_path: Path) -> None:
    done = run(f"\ndef test_own({name}):\n    {OWN_TESTS[name]}\n", tmp_path)
    assert done.returncode == 0, done.stdout
    twice = name in ("triton_client", "generate")
    assert f"{1 + twice} passed" in done.stdout


def test_a_fixture_that_no_test_names(tmp_path: Path) -> None:
    tests = """
def test_own(request):
    request.getfixturevalue("vllm_server")
"""
    done = run(tests, tmp_path)
    assert done.returncode == 1, done.stdout
    assert "@pytest.mark.usefixtures" in done.stdout
    marked = f'\n@pytest.mark.usefixtures("vllm_harness"){tests}'
    assert run(marked, tmp_path).returncode == 0
