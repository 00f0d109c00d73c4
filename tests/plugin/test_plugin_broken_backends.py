"""Broken copies of the backend, on real servers: each turns its requirements red, and no other.

A break is a change of the backend's source. Where the line to change is not found, the break is out
of date, and its test says so instead of passing on an unbroken backend.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugin_helpers import environment, verdicts

from pytest_vllm_triton import assets

# All of generation, streaming and outputs on the shared server: no check that boots another engine.
SELECTED = "(test_generate.py or test_streaming.py or test_outputs.py) and not only_version_three"
RED = {"FAIL", "ERROR", "XPASS"}


@dataclass(frozen=True)
class Break:
    """A change of one file of the backend.

    Attributes:
        old, new: the text that is replaced, which must be there exactly once.
        more: text that is appended to the file.
        red: the requirements that it violates, always.
        may: those that it violates or not, as the responses happen to be cut.
    """

    file: str
    old: str
    new: str
    red: frozenset[str]
    may: frozenset[str] = frozenset()
    more: str = ""

    def apply(self, backend: Path) -> None:
        path = backend / self.file
        source = path.read_text(encoding="utf-8")
        found = source.count(self.old)
        if found != 1:
            pytest.fail(f"{self.file} has changed ({found} times {self.old!r}): renew this break")
        path.write_text(source.replace(self.old, self.new) + self.more, encoding="utf-8")


BREAKS = {
    "last streamed chunk is lost": Break(
        file="vllm_triton_backend/responses.py",
        old="        if self._prefix:\n",
        new=(
            "        if final and getattr(self, '_began', False):\n"
            "            texts = [''] * size\n"
            "        self._began = True\n"
            "        if self._prefix:\n"
        ),
        red=frozenset({"STR-002", "STR-008", "STR-010", "STR-015", "STR-017"}),
        # These read a stream's text as well, but its last chunk may hold none of theirs: that of
        # another sequence, or nothing but the end of the text.
        may=frozenset({"STR-013", "OUT-003", "OUT-009", "OUT-016"}),
    ),
    "texts of two concurrent requests are swapped": Break(
        file="vllm_triton_backend/service.py",
        old="            self._runner.submit(parsed, params, adapter, stream)\n",
        new="            _swapped(self._runner, parsed, params, adapter, stream)\n",
        red=frozenset({"STR-010", "STR-017"}),
        more='''

_HELD = []
_HOLD = __import__("threading").Lock()
_SECONDS = 0.2


def _swapped(runner, parsed, params, adapter, stream):
    """Each streaming request waits a moment for a second one, and they get each other's answer."""
    if not parsed.stream:
        return runner.submit(parsed, params, adapter, stream)
    with _HOLD:
        if _HELD:
            other = _HELD.pop()
            runner.submit(*other[:3], stream)
            runner.submit(parsed, params, adapter, other[3])
            return
        held = (parsed, params, adapter, stream)
        _HELD.append(held)
    timer = __import__("threading").Timer(_SECONDS, _alone, (runner, held))
    timer.daemon = True
    timer.start()


def _alone(runner, held):
    with _HOLD:
        if not any(entry is held for entry in _HELD):
            return
        _HELD.remove(held)
    runner.submit(*held)
''',
    ),
    "temperature is ignored": Break(
        file="vllm_triton_backend/service.py",
        old="        formatter = GenerateFormatter(request,",
        # The lowest that still samples, and always the likeliest token: with 0, vLLM refuses n > 1.
        new=(
            "        if params.temperature > 0:\n"
            "            params.temperature = 0.01\n"
            "        formatter = GenerateFormatter(request,"
        ),
        # Without a temperature the seed decides nothing either.
        red=frozenset({"GEN-014", "GEN-028"}),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_backend(tmp_path: Path, name: str) -> None:
    broken = BREAKS[name]
    backend = tmp_path / "backend"
    shutil.copytree(
        assets.backend_dir(), backend, ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    broken.apply(backend)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--tb=no", "--vllm-model=known-answer"),
            *(f"--triton-backend-dir={backend}", "--conformance-report=r.json", "-k", SELECTED),
        ],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    judged = verdicts(report)
    assert len(judged) > 50
    red = {key for key, verdict in judged.items() if verdict in RED}
    assert broken.red <= red <= broken.red | broken.may, done.stdout
    assert {judged[key] for key in broken.red} == {"FAIL"}, done.stdout
