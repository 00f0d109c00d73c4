"""The models that can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoints import SHAPES, build_checkpoint
from benchmarks.workload import Workload
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.paths import cache_home

#: As in the plugin's options; not imported from there, because they import pytest.
KNOWN_ANSWER = "known-answer"
NAMES = (KNOWN_ANSWER, *SHAPES)


@dataclass(frozen=True)
class Model:
    """A checkpoint and the workload that fits it."""

    name: str
    path: Path
    workload: Workload


def get_model(name: str, max_tokens: int, cache: Path | None) -> Model:
    """The model of this name, generated into the cache if it is not there yet."""
    cache = cache or cache_home() / "checkpoints"
    if name != KNOWN_ANSWER:
        return Model(name, build_checkpoint(name, cache), Workload("words", max_tokens))
    from pytest_vllm_triton import known_answer

    spec = known_answer.KnownAnswerSpec()
    oracle = known_answer.KnownAnswer(spec)
    prompts = Workload("story", max_tokens)
    answers = {
        oracle.answer(prompts.prompt(number), max_tokens=max_tokens, ignore_eos=True).fragments
        for number in range(10)
    }
    if len(answers) != 1:
        raise UserError("The known-answer model does not answer every prompt alike.")
    workload = Workload("story", max_tokens, answers.pop())
    return Model(name, known_answer.build_checkpoint(spec, cache), workload)
