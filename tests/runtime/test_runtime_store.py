"""What is said of runtimes that have lost some of their parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_vllm_triton.runtime.store import HOST_LINKS, Runtime


@pytest.fixture
def whole(tmp_path: Path) -> Runtime:
    for name in ("python", "tritonserver", "backends/python", "libpython/x.so", f"{HOST_LINKS}/t"):
        (tmp_path / name).mkdir(parents=True)
    return Runtime(
        key="triton",
        root=tmp_path,
        python=tmp_path / "python",
        tritonserver=tmp_path / "tritonserver",
        backends=tmp_path / "backends",
        triton_version="2.51.0",
        vllm_version="0.32.0",
        python_version="3.11.7",
        base_prefix=Path("/usr"),
        host_torch=("2.11.0", "/opt/torch"),
    )


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("", ""),
        ("tritonserver", "tritonserver is missing"),
        ("libpython", "the Python 3.11.7 that it was made from is gone"),
        ("libpython/x.so", "the Python 3.11.7 that it was made from is gone"),
        (HOST_LINKS, "the PyTorch 2.11.0 that it uses is gone from /opt/torch"),
        (f"{HOST_LINKS}/t", "the PyTorch 2.11.0 that it uses is gone from /opt/torch"),
    ],
)
def test_a_runtime_that_lost_a_part_says_so(whole: Runtime, lost: str, said: str) -> None:
    if lost:
        shutil.rmtree(whole.root / lost)
    assert whole.broken().endswith(said)
    assert bool(whole.broken()) == bool(lost)
