"""Further models on the shared server: with LoRA and metrics, for embeddings, for
pictures, and around the vLLM model as steps of a pipeline."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_triton.clients import GenerateRequest, HttpClient, Unanswered
from pytest_vllm_triton.clients.repository import ControlAnswer, ModelRepository
from pytest_vllm_triton.known_answer import (
    BACKWARDS,
    LEAPS,
    AdapterSpec,
    KnownAnswer,
    KnownAnswerSpec,
    build_adapter,
    build_vision_checkpoint,
)
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle
from pytest_vllm_triton.models.under_test import known_answer_model
from pytest_vllm_triton.paths import cache_home
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from .tiny_encoder import TinyEncoder
from .waits import UNLOAD_SECONDS, until

LORA_MODEL = "lora_model"
EMBEDDING_MODEL = "embedding_model"
VISION_MODEL = "vision_model"
MAX_LORA_RANK = 8
BASE = KnownAnswerSpec()
ENCODER = TinyEncoder()
ENCODER_MAX_LEN = 200
MAX_PICTURES = 3
# How often a model that does not answer is loaded again. If it never answers, the checks are to say
# so.
RELOADS = 2
PROBE_SECONDS = 20.0
ONE_TOKEN = GenerateRequest("alpha", sampling={"max_tokens": 1})
ONE_VECTOR = GenerateRequest(inputs={"embedding_request": json.dumps({"input": "alpha"})})

# Its files have the names and sizes of those of `BACKWARDS`, which take their place.
SAME_SIZE = AdapterSpec(LEAPS.links, rank=len(BACKWARDS.links))
# Adapter name -> what it is. "nearby" lies in the model's folder and is named by a relative path;
# "changing" too, and its files are replaced while the model is served.
ADAPTERS = {
    "backwards": BACKWARDS,
    "leaps": LEAPS,
    "nearby": SAME_SIZE,
    "changing": SAME_SIZE,
    "late-backwards": BACKWARDS,
    "late-leaps": LEAPS,
}
# These two are first used by one check, at the same time.
LATE_ADAPTERS = ("late-backwards", "late-leaps")
MISSING_ADAPTER, LARGE_ADAPTER = "missing", "large"
LARGE = AdapterSpec(LEAPS.links, rank=4 * MAX_LORA_RANK)
# How often the checks change what an adapter is, at most.
ADAPTER_CHANGES = 14


def config_with(group: str | None = "kind: KIND_MODEL", /, **parameters: str) -> str:
    """The shortest config.pbtxt with these parameters.

    Args:
        group: what stands in its instance_group. None: there is none, which means an instance on
            each GPU that there is.
    """
    lines = ['backend: "vllm"']
    if group is not None:
        lines.append(f"instance_group [{{ {group} }}]")
    for name, value in parameters.items():
        lines.append(f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


@dataclass
class ExtraModel:
    """A model that is loaded into the shared server when first asked for, and again after `unload`.

    Attributes:
        probe: a request that it answers.
        load_error: the error of the last load; None when it succeeded.
        is_loaded: whether it is loaded now.
    """

    server: ServerHandle
    spec: ModelSpec
    probe: GenerateRequest
    load_error: str | None = field(default=None, init=False)
    is_loaded: bool = field(default=False, init=False)
    _repository: ModelRepository | None = field(default=None, init=False)
    _reloads: int = field(default=0, init=False)

    @property
    def repository(self) -> ModelRepository:
        if self._repository is None:
            self._repository = ModelRepository(self.server)
            self._repository.add(self.spec)
        return self._repository

    @property
    def folder(self) -> Path:
        """The model's version folder."""
        assert self.server.model_repository is not None
        return self.server.model_repository / self.spec.name / str(self.spec.version)

    def load(self) -> ControlAnswer:
        answer = self.repository.load(self.spec.name)
        self.load_error = answer.error
        self.is_loaded = answer.error is None
        return answer

    def unload(self) -> ControlAnswer:
        self.is_loaded = False
        return self.repository.unload(self.spec.name)

    def served(self) -> str:
        """The model's name, once it is loaded.

        If an earlier check has left it with a dead engine, it is loaded again, so that other
        requirements do not fail for that.
        """
        if self.is_loaded and self._reloads < RELOADS and not self._answers():
            self._reloads += 1
            self.unload()
            until(lambda: not self.repository.is_ready(self.spec.name), UNLOAD_SECONDS)
        if not self.is_loaded:
            self.load().ok()
        return self.spec.name

    def _answers(self) -> bool:
        url = self.server.endpoints.http
        with HttpClient(url, self.spec.name, deadline=PROBE_SECONDS) as client:
            try:
                return client.generate(self.probe).error is None
            except Unanswered:
                return False

    def close(self) -> None:
        if self._repository is not None:
            self._repository.close()


def lora_spec(harness: Harness, model: str = LORA_MODEL, **engine_args: Any) -> ModelSpec:
    """The known-answer model with adapters, good and bad ones, and with custom metrics."""
    cache = cache_home() / "checkpoints"
    paths = {
        name: str(build_adapter(BASE, ADAPTERS[name], cache))
        for name in ("backwards", "leaps", *LATE_ADAPTERS)
    }
    files = {}
    for name in ("nearby", "changing"):
        paths[name] = f"adapters/{name}"
        for file in build_adapter(BASE, ADAPTERS[name], cache).iterdir():
            files[f"1/adapters/{name}/{file.name}"] = file.read_bytes()
    paths[MISSING_ADAPTER] = "/nowhere/adapter"
    paths[LARGE_ADAPTER] = str(build_adapter(BASE, LARGE, cache))
    files["1/multi_lora.json"] = json.dumps(paths).encode()
    return harness.model_spec(
        model,
        {
            "model": str(known_answer_model().path),
            # Of all limits that are usual the buckets of token histograms would look the same.
            "max_model_len": 1500,
            # As users write it.
            "enable_lora": "true",
            "max_lora_rank": MAX_LORA_RANK,
            "disable_log_stats": False,
            # vLLM 0.32 on CPUs goes wrong with fewer places than adapters, and each change of an
            # adapter's files, and back, makes one more.
            "max_loras": len(paths) + ADAPTER_CHANGES,
            **engine_args,
        },
        config=config_with(REPORT_CUSTOM_METRICS="True"),
        files=files,
    )


def oracle(adapter: str | None = None) -> KnownAnswer:
    """What the LoRA model tells with this adapter; None: without one."""
    return KnownAnswer(BASE, adapter=ADAPTERS[adapter] if adapter else None)


def embedding_spec(harness: Harness) -> ModelSpec:
    """The tiny encoder; it asks for metrics, as the others do, and for vLLM's health check."""
    folder = harness.provision.work_dir / "tiny-encoder"
    if not folder.is_dir():
        ENCODER.write(folder)
    return harness.model_spec(
        EMBEDDING_MODEL,
        {
            "model": str(folder),
            "dtype": "float32",
            "max_model_len": ENCODER_MAX_LEN,
        },
        config=config_with(REPORT_CUSTOM_METRICS="true", ENABLE_VLLM_HEALTH_CHECK="true"),
    )


def vision_spec(harness: Harness) -> ModelSpec:
    """The model that names the colour of a prompt's last picture.

    It asks for metrics, but vLLM's statistics are off.
    """
    return harness.model_spec(
        VISION_MODEL,
        {
            "model": str(build_vision_checkpoint(cache_home() / "checkpoints")),
            # The model's own, 4096.
            "max_model_len": None,
            "limit_mm_per_prompt": {"image": MAX_PICTURES},
            "disable_log_stats": True,
            # A boolean here, a string in the alternate model.
            "enable_lora": False,
        },
        config=config_with(REPORT_CUSTOM_METRICS="true"),
    )


def needs_owned(server: ServerHandle) -> ServerHandle:
    """The server, if models can be added to it."""
    if not server.owned or server.model_repository is None:
        untested("needs a server that the suite starts itself, not an attached one")
    return server
