"""A second model on the shared server, as different from the first as a model can be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ModelSpec
from pytest_vllm_triton.models.under_test import other_known_answer_model
from pytest_vllm_triton.servers.harness import Harness

from .extra_models import config_with

# Not the shared model's limit, and long enough to tell a cancelled request from one that ran on.
MAX_MODEL_LEN = 4000
ONLY_VERSION = 3
# A newer one, whose model.json is broken.
UNSERVED_VERSION = 30
NO_LORA = "false"


@dataclass(frozen=True)
class Alternate:
    """The alternate model, as it did load.

    Attributes:
        name: under which it is served.
        version: `ONLY_VERSION`, or 1 where it does not load with that.
        enable_lora: `NO_LORA`, or None where it does not load with that.
    """

    name: str
    version: int
    enable_lora: str | None


def load_alternate(
    harness: Harness, repository: ModelRepository, *, several_gpus: bool
) -> Alternate:
    """Load it with as many of its unusual settings as the backend accepts.

    A setting that the backend refuses is left out, so that only the checks of that setting fail and
    all others still have their model.
    """
    for version, enable_lora in product((ONLY_VERSION, 1), (NO_LORA, None)):
        spec = _spec(harness, version, enable_lora, several_gpus)
        repository.add(spec)
        answer = repository.load(spec.name)
        if answer.error is None:
            break
    answer.ok()
    return Alternate(spec.name, version, enable_lora)


def _spec(harness: Harness, version: int, enable_lora: str | None, several_gpus: bool) -> ModelSpec:
    """Everything unusual in one model, so that one boot of an engine serves several checks.

    It has another checkpoint, whose known answer tells another story, another max_model_len, custom
    metrics, and one sequence at a time, so that a second request shows when the first one has left
    the engine. It has no instance_group, except where there are several GPUs: there, none would
    mean one instance on each.
    """
    group = "kind: KIND_GPU gpus: [ 0 ]" if several_gpus else None
    config = config_with(group, REPORT_CUSTOM_METRICS="true")
    files = {}
    if version == ONLY_VERSION:
        config += f"version_policy {{ specific {{ versions: {version} }} }}\n"
        files[f"{UNSERVED_VERSION}/model.json"] = b"{"
    return harness.model_spec(
        "alternate_model",
        {
            "model": str(other_known_answer_model().path),
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": 1,
            # The next one is that of the lowest number.
            "scheduling_policy": "priority",
            # A long prompt takes many steps, so that it can be cancelled on the way.
            "max_num_batched_tokens": 16,
            # Not vLLM's default, and false to Python.
            "max_logprobs": 0,
            # A string, as users write it; LoRA stays off.
            "enable_lora": enable_lora,
        },
        config=config,
        version=version,
        files=files,
    )
