"""What a check reads from a run of the sample client: a client that misbehaves is a violation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance import test_sample_client
from conformance.test_sample_client import Run, SampleClient
from pytest_vllm_triton.expect import Violation


def client_of(folder: Path, code: str) -> SampleClient:
    """A backend's own client, which is this code."""
    samples = folder / "samples"
    samples.mkdir()
    (samples / "client.py").write_text(code)
    (samples / "prompts.txt").write_text("one\n")
    provision = SimpleNamespace(samples_dir=samples)
    harness: Any = SimpleNamespace(provision=provision, model_name="m")
    server: Any = SimpleNamespace(endpoints=SimpleNamespace(grpc="127.0.0.1:1"))
    return SampleClient(harness, server, folder)


def test_client_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_sample_client, "SECONDS", 1.0)
    client = client_of(tmp_path, "import time\nprint('busy', flush=True)\ntime.sleep(60)\n")
    with pytest.raises(Violation, match="its end within 1 s") as raised:
        client.run()
    assert "busy" in raised.value.actual


def test_client_that_writes_no_text(tmp_path: Path) -> None:
    code = "open('results.txt', 'wb').write(b'\\xff')\nimport os\nos.write(1, b'\\xfe')\n"
    run = client_of(tmp_path, code).run()
    assert (run.results, run.stdout) == ("\\xff", "\\xfe")


def test_client_without_results() -> None:
    with pytest.raises(Violation, match="results file"):
        _ = Run(0, "PASS", "", None).sections
