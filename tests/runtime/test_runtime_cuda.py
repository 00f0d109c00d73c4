"""Runtimes on CUDA: what they hold, and which runtime a session gets."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.runtime import (
    CPU,
    CUDA,
    Accelerator,
    Runtime,
    create_runtime,
    find_runtime,
    recipe,
)
from pytest_vllm_triton.runtime.choice import check_gpu, choose_accelerator
from pytest_vllm_triton.runtime.store import MANIFEST

pytestmark = pytest.mark.usefixtures("home")


def test_the_names_of_runtimes_for_cpus_stay() -> None:
    """What users have made is found by it."""
    key = recipe.runtime_key("0.32.0", "3.11.7", "/x")
    assert key == "triton2.51.0-vllm0.32.0-py3.11.7-eed64f1a"
    cuda = recipe.runtime_key("0.25.1", "3.11.7", "/x", CUDA)
    assert cuda.startswith("triton2.51.0-vllm0.25.1-cuda-py3.11.7-")
    torch = ("2.11.0+cu130", "/host")
    assert recipe.runtime_key("0.25.1", "3.11.7", "/x", CUDA, torch) != cuda


@pytest.mark.usefixtures("cuda_wheels")
def test_a_runtime_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = create_runtime(accelerator=CUDA)

    assert (runtime.vllm_version, runtime.accelerator) == ("0.25.1", CUDA)
    assert Runtime.at(runtime.root) == runtime
    assert find_runtime("0.25.1", CUDA) == runtime
    assert find_runtime("0.32.0") is None
    script = (
        "import importlib.util as u, numpy, torch\n"
        "names = ['nvidia.cublas', 'triton', 'torchvision', 'flashinfer', 'only_flashinfer']\n"
        "print(numpy.__version__, torch.__version__, [n for n in names if u.find_spec(n)])"
    )
    told = runtime.run_python(script).stdout
    assert told == "1.26.4 2.11.0 ['nvidia.cublas', 'triton', 'torchvision']\n"

    monkeypatch.setenv("LD_LIBRARY_PATH", "/driver")
    environment = runtime.environment()
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(environment)
    assert environment["LD_LIBRARY_PATH"].endswith(":/driver")


@pytest.mark.usefixtures("offline_wheels")
def test_a_runtime_of_an_earlier_version_is_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = create_runtime()
    manifest = runtime.root / MANIFEST
    facts = json.loads(manifest.read_text())
    del facts["accelerator"], facts["host_torch"]
    manifest.write_text(json.dumps(facts))

    assert find_runtime("0.32.0") == runtime
    assert runtime.accelerator is CPU
    environment = runtime.environment()
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment
    monkeypatch.setenv("LD_LIBRARY_PATH", "/foreign")
    assert "/foreign" not in runtime.environment()["LD_LIBRARY_PATH"]


def finds(*there: Accelerator) -> Callable[[str, Accelerator], Runtime | None]:
    """A host that has finished runtimes on these."""

    def find(_: str, accelerator: Accelerator) -> Runtime | None:
        return object() if accelerator in there else None  # type: ignore[return-value]

    return find


@pytest.mark.parametrize(
    ("wanted", "version", "gpu", "there", "expected"),
    [
        ("auto", None, True, [CUDA], CUDA),
        ("auto", None, False, [CUDA], CPU),
        ("auto", None, True, [], CPU),
        ("auto", "0.32.0", True, [CUDA], CPU),
        ("auto", "0.25.1", True, [CUDA], CUDA),
        ("cpu", None, True, [CUDA], CPU),
        ("cuda", None, False, [], CUDA),
    ],
)
def test_which_accelerator(
    wanted: str,
    version: str | None,
    gpu: bool,
    there: list[Accelerator],
    expected: Accelerator,
) -> None:
    chosen = choose_accelerator(wanted, version, has_gpu=lambda: gpu, find=finds(*there))
    assert chosen is expected


@pytest.mark.parametrize(
    ("wanted", "version", "said"),
    [
        ("auto", "0.25.1", r"on the CPU\. There is one on CUDA \(accelerator cuda\)"),
        ("cuda", "0.32.0", r"on CUDA\. There is one on the CPU \(accelerator cpu\)"),
        ("cuda", "0.25", r"Did you mean 0\.25\.1\?"),
    ],
)
def test_a_vllm_that_the_accelerator_does_not_have(wanted: str, version: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_accelerator(wanted, version, has_gpu=lambda: False, find=finds())


def test_without_a_gpu_nothing_is_made_for_cuda() -> None:
    check_gpu(CPU, lambda: False)
    check_gpu(CUDA, lambda: True)
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        check_gpu(CUDA, lambda: False)
