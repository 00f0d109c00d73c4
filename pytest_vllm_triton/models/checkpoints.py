"""Whether a folder is a Hugging Face checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import ModelUnavailable
from pytest_vllm_triton.suggest import nearest_sibling


def checked_checkpoint(folder: Path) -> Path:
    """The folder, if vLLM can be expected to read it.

    Raises:
        ModelUnavailable: what is wrong with it, in one sentence.
    """
    if not os.path.exists(folder):  # noqa: PTH110 - unlike Path.exists, it takes any text
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} does not exist.{nearest_sibling(folder)}"
        )
    if not folder.is_dir():
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} is a file; give the checkpoint's directory."
        )
    config = folder / "config.json"
    if not os.path.isfile(config):  # noqa: PTH113 - unlike Path.is_file, no error if it is closed
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} is no Hugging Face checkpoint: it holds no config.json."
        )
    if not _json_object(config).get("architectures"):
        raise ModelUnavailable(f"--vllm-model: {str(config)!r} names no architecture.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} holds no weights (*.safetensors or *.bin)."
        )
    for index in folder.glob("*.safetensors.index.json"):
        shards = _json_object(index).get("weight_map", {}).values()
        for shard in sorted(set(shards)):
            if not (folder / shard).is_file():
                raise ModelUnavailable(
                    f"--vllm-model: {str(folder)!r} lacks {shard}, which {index.name} names."
                )
    return folder


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"--vllm-model: {str(path)!r} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelUnavailable(f"--vllm-model: {str(path)!r} is not a JSON object.")
    return value
