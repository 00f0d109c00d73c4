"""What is shown of a secret that a server's process was given: nothing, whoever says it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_servers import TALKATIVE, Launch, model

from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ModelSpec
from pytest_vllm_triton.launchers.process import ProcessLauncher
from pytest_vllm_triton.servers.harness import Harness

SECRET = "hf_1234567890"
NO_METRICS = "--allow-metrics=false"


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessLauncher:
    """Starts a stand-in of tritonserver, which says its token."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    program = tmp_path / "tritonserver"
    program.write_text(f"#!{sys.executable}\n{TALKATIVE}")
    program.chmod(0o755)
    return ProcessLauncher(program, tmp_path / "backends", {}, tmp_path / "servers")


def test_the_log_of_a_server(launch: Launch) -> None:
    server = launch(model("m"), args=(NO_METRICS,), env={"THEN": "serve"})
    assert server.log is not None
    for text in (server.log.read(), server.log.tail()):
        assert "the token is ***" in text
        assert SECRET not in text


def test_the_line_to_start_a_server(launch: Launch) -> None:
    given = {"THEN": "serve", "URL": f"http://me:{SECRET}@host", "MY_TOKEN": "it's mine"}
    flags = (NO_METRICS, f"--one={SECRET}", "--two=it's mine")
    line = launch(model("m"), args=flags, env=given).reproduce()
    assert "URL='http://me:***@host'" in line
    assert "'--one=***'" in line
    assert "'--two=***'" in line
    assert SECRET not in line
    assert "mine" not in line


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("end", r"ended with exit code 1 \(error: no access with \*\*\*\) before it was ready"),
        ("fail", r"Model 'm' failed to load: Internal: no access with \*\*\*"),
        ("answer", r"Model 'm' failed to load: no access with \*\*\*"),
        ("wait", r"not ready after 3 s"),
    ],
)
def test_why_a_server_failed(launch: Launch, then: str, reason: str) -> None:
    with pytest.raises(ServerFailed, match=reason) as caught:
        launch(model("m"), env={"THEN": then}, timeout=3.0 if then == "wait" else 60.0)
    assert "the token is ***" in caught.value.log_tail
    assert SECRET not in str(caught.value)


def test_why_vllm_without_triton_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Python:
        def run_python(self, *_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(["python3"], 1, "", f"no access with {SECRET}")

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(Harness, "model_spec", lambda _: ModelSpec("m"))
    provision: Any = SimpleNamespace(
        server_python=Python(), own_gpus={}, settings=SimpleNamespace(boot_timeout=1.0)
    )
    with pytest.raises(ServerFailed) as caught:
        Harness(provision).reference_texts([])
    assert caught.value.log_tail == "no access with ***"
