"""Whether a runtime works on this host."""

from __future__ import annotations

import json
import subprocess

from pytest_vllm_triton.errors import RuntimeUnavailable
from pytest_vllm_triton.runtime import recipe
from pytest_vllm_triton.runtime.store import Runtime

CHECK_SECONDS = 300

_SELF_CHECK = """
import importlib.metadata, json, locale, sys
locale.setlocale(locale.LC_CTYPE, "")
import numpy, torch, vllm
print(json.dumps({
    "numpy": numpy.__version__, "torch": torch.__version__, "vllm": vllm.__version__,
    "distribution": importlib.metadata.version(sys.argv[1]),
}))
"""


def self_check(runtime: Runtime) -> None:
    """Import what a server imports, and start its binary; raises RuntimeUnavailable."""

    def fail(what: str, output: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"The embedded server runtime does not work on this host: {what}: "
            f"{output.strip()[-500:] or 'no output'}. Remove it with 'pytest-vllm-triton runtime "
            f"remove {runtime.key}' and create it again."
        )

    try:
        answer = runtime.run_python(
            _SELF_CHECK, [runtime.accelerator.distribution], timeout=CHECK_SECONDS
        )
        if answer.returncode != 0:
            raise fail("its Python cannot import vLLM", answer.stderr)
        facts = json.loads(answer.stdout.strip().rpartition("\n")[2])
        if facts["numpy"] != recipe.NUMPY_VERSION:
            raise fail(f"it needs NumPy {recipe.NUMPY_VERSION}", f"NumPy is {facts['numpy']}")
        if facts["distribution"] != runtime.vllm_version:
            raise fail(f"it needs vLLM {runtime.vllm_version}", f"it is {facts['distribution']}")
        usage = subprocess.run(
            [str(runtime.tritonserver), "--help"],
            env=runtime.full_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
        )
        if "--model-repository" not in usage.stdout + usage.stderr:
            raise fail("tritonserver does not start", usage.stderr)
    except subprocess.TimeoutExpired as error:
        raise fail("no answer", f"{error.cmd[0]} took more than {CHECK_SECONDS} s") from error
