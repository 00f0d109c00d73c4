"""tritonserver's command line, as every launcher writes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.launchers.base import ServerSpec

#: Triton's own default of --exit-timeout-secs; a graceful stop may take that long.
EXIT_TIMEOUT_SECONDS = 30
#: What a graceful stop may take beyond Triton's own exit timeout.
STOP_MARGIN_SECONDS = 10.0
#: The python backend gives up on a stub that is silent this long; importing vLLM takes a while.
STUB_TIMEOUT_SECONDS = 300

#: Flags that the launcher sets; a second value would break what the handle says of the server.
OWN_FLAGS = frozenset(
    {
        "--http-port",
        "--http-address",
        "--grpc-port",
        "--grpc-address",
        "--metrics-port",
        "--metrics-address",
        "--model-repository",
        "--model-store",
        "--model-control-mode",
        "--load-model",
        "--backend-directory",
        "--log-file",
        "--allow-http",
        "--allow-grpc",
        "--allow-sagemaker",
        "--allow-vertex-ai",
    }
)


def check_spec(spec: ServerSpec) -> None:
    """Raises UserError for a specification that no launcher can start a server from."""
    for flag in (word.partition("=")[0] for word in spec.args):
        if flag in OWN_FLAGS:
            raise UserError(f"tritonserver's {flag} is the launcher's own to set.")
    if spec.backend_dir is None:
        return
    if not spec.backend_dir.is_dir():
        raise UserError(f"The backend directory {spec.backend_dir} does not exist.")
    uses_vllm = any(re.search(r'backend\s*:\s*"vllm"', model.config) for model in spec.models)
    if uses_vllm and not (spec.backend_dir / "model.py").is_file():
        nested = spec.backend_dir / "src"
        hint = f" Did you mean {nested}?" if (nested / "model.py").is_file() else ""
        raise UserError(f"The backend directory {spec.backend_dir} has no model.py.{hint}")


def model_flags(spec: ServerSpec, repository: Path) -> list[str]:
    """The flags that say what is served."""
    loaded = spec.started_models if spec.control_mode == "explicit" else ()
    mode = ["--model-control-mode", spec.control_mode]
    return [
        f"--model-repository={repository}",
        *(mode if spec.control_mode_as_two_words else ["=".join(mode)]),
        *(f"--load-model={name}" for name in loaded),
    ]


def python_backend_flags(prefix: str) -> list[str]:
    return [
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_SECONDS}",
    ]


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, given as ``--flag=value`` or as two words; None without it."""
    value = None
    for position, word in enumerate(args):
        name, equals, given = word.partition("=")
        if name == flag:
            value = given if equals else "".join(args[position + 1 : position + 2])
    return value


def metrics_off(args: Sequence[str]) -> bool:
    return (flag_value(args, "--allow-metrics") or "").lower() in {"false", "0"}


def exit_timeout(args: Sequence[str]) -> float:
    value = flag_value(args, "--exit-timeout-secs") or ""
    return float(value) if value.isdecimal() else EXIT_TIMEOUT_SECONDS
