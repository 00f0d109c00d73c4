"""Checkpoints of the Hugging Face hub, cached by the hub's own client."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_triton.errors import ModelUnavailable
from pytest_vllm_triton.models.checkpoints import checked_checkpoint
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.suggest import nearest_sibling
from pytest_vllm_triton.texts import cut, first_line

# What vLLM reads of a checkpoint; original PyTorch or TensorFlow weights beside it stay on the hub.
_NEEDED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_NEEDED_IN_OLD_FORMAT = [*_NEEDED, "*.bin"]
_TIMEOUT_SECONDS = 10.0


def download(name: str, progress: Progress) -> Path:
    """The folder of a model of the hub (or of HF_ENDPOINT), downloaded if it is not in the cache.

    Raises:
        ModelUnavailable: why it cannot be had, in one sentence.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        cached = _in_the_cache(name)
        if cached is not None:
            return cached
        progress(f"Downloading {name} from {constants.ENDPOINT}")
        # One request, which is not repeated: a hub that cannot be reached is said soon.
        files = HfApi().model_info(name, timeout=_TIMEOUT_SECONDS).siblings or []
        is_new = any(file.rfilename.endswith(".safetensors") for file in files)
        patterns = _NEEDED if is_new else _NEEDED_IN_OLD_FORMAT
        return checked_checkpoint(Path(snapshot_download(name, allow_patterns=patterns)))
    except ModelUnavailable:
        raise
    except Exception as error:
        # The hub client reports a missing network through several libraries' exceptions.
        raise ModelUnavailable(f"--vllm-model: {_reason(name, error)}") from None


def _in_the_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # With the patterns of the download, or what it left out would count as missing.
    for patterns in (_NEEDED, _NEEDED_IN_OLD_FORMAT):
        try:
            folder = snapshot_download(name, allow_patterns=patterns, local_files_only=True)
            return checked_checkpoint(Path(folder))
        except (LocalEntryNotFoundError, ModelUnavailable):
            continue
    return None


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    endpoint = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return (
            f"{name!r} is neither known-answer, nor a Hugging Face id, nor a "
            f"directory.{nearest_sibling(Path(name).absolute())}"
        )
    if isinstance(error, GatedRepoError):
        return f"{name!r} is gated: accept its licence on {endpoint} and set HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return f"{endpoint} knows no model {name!r} (or it is private: set HF_TOKEN)."
    said = cut(first_line(str(error), "no details"), 200)
    return (
        f"{name!r} is not in the local cache and could not be downloaded from {endpoint} "
        f"({type(error).__name__}: {said}). Check the network or HF_ENDPOINT, give a local "
        "checkpoint directory, or use --vllm-model known-answer, which needs no download."
    )
