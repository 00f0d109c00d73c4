"""The model under test: generated, downloaded or local, and what is known about its answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_triton.errors import ModelUnavailable
from pytest_vllm_triton.launcher_kinds import LauncherKind
from pytest_vllm_triton.option_values import KNOWN_ANSWER
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.progress import Progress
from pytest_vllm_triton.settings import Settings
from pytest_vllm_triton.suggest import nearest_sibling
from pytest_vllm_triton.texts import cut, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pytest_vllm_triton.known_answer import KnownAnswer, KnownAnswerSpec

# What vLLM reads of a checkpoint; original PyTorch or TensorFlow weights beside it stay on the hub.
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_DOWNLOADED_OLD_FORMAT = [*_DOWNLOADED, "*.bin"]
_HUB_TIMEOUT_SECONDS = 10.0
_SURE_CHARACTERS = 40

# What model.json says of a known-answer checkpoint, and of the suite's other tiny ones: a length
# below what the checkpoint allows, so that a prompt that is too long stays a small one; and a cache
# of a fixed size, because engines that start together on one GPU cannot measure what is free there.
TINY_MODEL_ARGS: Mapping[str, Any] = {
    "max_model_len": 2048,
    "gpu_memory_utilization": 0.02,
    "kv_cache_memory_bytes": 1 << 29,
}


# What model.json says of any other checkpoint: up to four engines of it share a GPU at times (two
# servers, and one that is loaded anew before the old one goes).
OTHER_MODEL_ARGS: Mapping[str, Any] = {"gpu_memory_utilization": 0.2}


@dataclass(frozen=True)
class ModelUnderTest:
    """A checkpoint and the oracle for it, if there is one.

    Attributes:
        source: as the user named it.
        path: the checkpoint folder; None when the served checkpoint is not known (attach).
        known_answer: the oracle; only the known-answer checkpoint has one.
        engine_args: what this model needs in model.json besides ``model``.
    """

    source: str
    path: Path | None
    known_answer: KnownAnswer | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's fast tokenizer, None when it has none."""
        from tokenizers import Tokenizer

        if self.path is None or not (self.path / "tokenizer.json").is_file():
            return None
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def stable_part(self, text: str) -> str:
        """The part of a greedy text that is the same whether the request runs alone or in a batch.

        Batched numerics differ in the last bits, which decides between tokens that are nearly as
        probable; the known-answer model is sure of every one.
        """
        return text if self.known_answer else text[:_SURE_CHARACTERS]


def resolve_model(settings: Settings, progress: Progress) -> ModelUnderTest:
    """Find, generate or download the model that the user asked for.

    Raises:
        ModelUnavailable: what is wrong with it, in one sentence.
    """
    name = settings.model
    if settings.launcher is LauncherKind.ATTACH and not settings.model_is_explicit:
        return ModelUnderTest(source="unknown", path=None)
    if name == KNOWN_ANSWER:
        return known_answer_model()
    folder = Path(name).expanduser()
    is_there = os.path.exists(folder)  # noqa: PTH110 - unlike Path.exists, it takes any text
    if is_there or name.startswith((".", "/", "~")) or name.count("/") > 1:
        path = _checked_checkpoint(folder.absolute())
    else:
        path = _downloaded(name, progress)
    return ModelUnderTest(source=name, path=path, engine_args=OTHER_MODEL_ARGS)


def known_answer_model() -> ModelUnderTest:
    """The known-answer checkpoint, generated into the cache on first use."""
    from pytest_vllm_triton.known_answer import KnownAnswerSpec

    return _generated(KnownAnswerSpec())


def known_answer_model_of_layers(layers: int) -> ModelUnderTest:
    """The known-answer model for a pipeline of this many stages: each takes a layer at least."""
    from pytest_vllm_triton.known_answer import KnownAnswerSpec

    return _generated(KnownAnswerSpec(layers=layers))


def other_known_answer_model() -> ModelUnderTest:
    """A second checkpoint with another story: shows which of two models answered."""
    from pytest_vllm_triton.known_answer import OTHER_STORY, KnownAnswerSpec

    return _generated(KnownAnswerSpec(story=OTHER_STORY))


def _generated(spec: KnownAnswerSpec) -> ModelUnderTest:
    from pytest_vllm_triton.known_answer import KnownAnswer, build_checkpoint

    path = build_checkpoint(spec, cache_home() / "checkpoints")
    return ModelUnderTest(
        source=KNOWN_ANSWER,
        path=path,
        known_answer=KnownAnswer(spec),
        engine_args=TINY_MODEL_ARGS,
    )


def _checked_checkpoint(folder: Path) -> Path:
    """The folder, if vLLM can be expected to read it."""
    if not folder.exists():
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} does not exist.{nearest_sibling(folder)}"
        )
    if not folder.is_dir():
        raise ModelUnavailable(
            f"--vllm-model: {str(folder)!r} is a file; give the checkpoint's directory."
        )
    config = folder / "config.json"
    if not config.is_file():
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


def _downloaded(name: str, progress: Progress) -> Path:
    """The snapshot of a model of the hub (or of HF_ENDPOINT), cached by the hub's own client."""
    # Read by huggingface_hub when it is imported; the user's own setting wins.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(_HUB_TIMEOUT_SECONDS)))
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def cached() -> Path | None:
        # With the patterns of the download, or what it left out would count as missing.
        for patterns in (_DOWNLOADED, _DOWNLOADED_OLD_FORMAT):
            try:
                folder = snapshot_download(name, allow_patterns=patterns, local_files_only=True)
                return _checked_checkpoint(Path(folder))
            except (LocalEntryNotFoundError, ModelUnavailable):
                continue
        return None

    endpoint = constants.ENDPOINT
    try:
        complete = cached()
        if complete is not None:
            return complete
        progress(f"Downloading {name} from {endpoint}")
        # One request, which is not repeated: a hub that cannot be reached is said soon.
        files = HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS).siblings or []
        patterns = (
            _DOWNLOADED
            if any(file.rfilename.endswith(".safetensors") for file in files)
            else _DOWNLOADED_OLD_FORMAT
        )
        return _checked_checkpoint(Path(snapshot_download(name, allow_patterns=patterns)))
    except HFValidationError:
        raise ModelUnavailable(
            f"--vllm-model: {name!r} is neither known-answer, nor a Hugging Face id, nor a "
            f"directory.{nearest_sibling(Path(name).absolute())}"
        ) from None
    except GatedRepoError:
        raise ModelUnavailable(
            f"--vllm-model: {name!r} is gated: accept its licence on {endpoint} and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise ModelUnavailable(
            f"--vllm-model: {endpoint} knows no model {name!r} (or it is private: set HF_TOKEN)."
        ) from None
    except ModelUnavailable:
        raise
    except Exception as error:
        # The hub client reports a missing network through several libraries' exceptions.
        said = cut(first_line(str(error), "no details"), 200)
        raise ModelUnavailable(
            f"--vllm-model: {name!r} is not in the local cache and could not be downloaded from "
            f"{endpoint} ({type(error).__name__}: {said}). Check the network or "
            "HF_ENDPOINT, give a local checkpoint directory, or use --vllm-model known-answer, "
            "which needs no download."
        ) from None
