"""The model under test: generated, downloaded or local, and what is known about its answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_triton.models.checkpoints import checked_checkpoint
from pytest_vllm_triton.models.hub import download
from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.options.settings import Settings
from pytest_vllm_triton.options.values import KNOWN_ANSWER
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pytest_vllm_triton.known_answer import KnownAnswer, KnownAnswerSpec

# Some tokens; each further one of a crowd is another chance for numerics to decide.
_SURE_CHARACTERS = 24

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
        path = checked_checkpoint(folder.absolute())
    else:
        path = download(name, progress)
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
