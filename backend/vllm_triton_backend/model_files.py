"""The files of a model version: model.json and multi_lora.json.

What they say is checked before vLLM is imported, so that a mistake is reported within a second and
not after twenty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_triton_backend.errors import LoadError

ENGINE_ARGS_FILE = "model.json"
LORA_FILE = "multi_lora.json"


def read_engine_args(version_dir: Path) -> dict[str, Any]:
    """The engine arguments in `<version_dir>/model.json`.

    Raises:
        LoadError: the file is missing, is not JSON, is not an object, or names no model.
    """
    path = version_dir / ENGINE_ARGS_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise LoadError(
            f"'{ENGINE_ARGS_FILE}' containing vllm engine args must be provided in '{version_dir}'"
        ) from None
    except UnicodeDecodeError as error:
        raise LoadError(f"'{path}' is not UTF-8: {error}") from None
    except OSError as error:
        raise LoadError(f"'{path}' cannot be read: {error.strerror}") from None
    arguments = _json_object(text, path)
    if not isinstance(arguments.get("model"), str) or not arguments["model"]:
        raise LoadError(f'\'{path}\' must name the model to load: {{"model": "<id or path>", …}}')
    return arguments


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LoadError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"'{path}' must hold a JSON object, found {type(value).__name__}")
    return value


def read_lora_paths(version_dir: Path) -> dict[str, str]:
    """`{adapter name: path}` of `<version_dir>/multi_lora.json`; relative paths are resolved
    against `version_dir`.

    Raises:
        LoadError: the file is missing or is not an object of strings.
    """
    path = version_dir / LORA_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise LoadError(f"Triton backend cannot find {path}, which enable_lora needs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"'{path}' cannot be read: {error}") from None
    adapters = _json_object(text, path)
    for name, target in adapters.items():
        if not isinstance(target, str) or not target:
            raise LoadError(f"'{path}': the path of adapter '{name}' must be a non-empty string")
    return {name: str((version_dir / target).resolve()) for name, target in adapters.items()}


def read_bool(arguments: dict[str, Any], key: str) -> bool:
    """A boolean engine argument, False if it is missing. Users also write "true", which is made a
    boolean in `arguments`, for vLLM.

    Raises:
        LoadError: the value is neither a boolean nor "true"/"false".
    """
    if key not in arguments:
        return False
    value = arguments[key]
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise LoadError(f"'{ENGINE_ARGS_FILE}': '{key}' must be true or false, got {value!r}")
    arguments[key] = value
    return value
