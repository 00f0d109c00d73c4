"""One experiment with several GPUs: models that are placed on them in every way that there is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytest_vllm_triton.clients import GrpcClient, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.gpus import VISIBLE_DEVICES, Gpu, MemoryUnknown
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerProcess
from pytest_vllm_triton.models.under_test import known_answer_model, known_answer_model_of_layers
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.verdicts import untested

from ..extra_models import config_with, lora_spec, oracle
from ..processes import WORKER, is_engine, is_stub, living, stub_instance
from ..record import Seen
from ..traffic import at_once, expected_text, first_of, greedy
from ..waits import GONE_SECONDS, PATIENCE, UNLOAD_SECONDS, until

TENSOR = "tensor_parallel"
VICTIM = "tensor_parallel_victim"
PIPELINE = "pipeline_parallel"
FOUR = "tensor_parallel_of_four"
RAY = "on_ray"
EACH_GPU = "on_each_gpu"
FIRST_GPU, SECOND_GPU = "on_first_gpu", "on_second_gpu"
TWO_INSTANCES = "two_instances"
CHOSEN_GPU, SLICED_GPUS = "on_chosen_gpu", "on_sliced_gpus"

TOKENS = 24
PROMPTS = ("Say alpha", "What is Triton Inference Server?", "number 7 hotel")
REQUESTS = [greedy(prompt, TOKENS) for prompt in PROMPTS]
LORA_TOKENS = 12
LORA_PROMPT = "Say alpha"
# How many models are loaded at the same time: each keeps several processes busy.
LOADS = 6
MAX_MODEL_LEN = 2048
# What cancelled requests would have kept the engine busy for.
BUSY_SECONDS = 20.0


@dataclass(frozen=True)
class Placement:
    """How a model asks for GPUs.

    Attributes:
        group: what stands in its instance_group.
        engine_args: in its model.json.
        parameters: in its config.pbtxt.
    """

    group: str = "kind: KIND_MODEL"
    engine_args: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)


def placements(gpus: int) -> dict[str, Placement]:
    """Model -> how it is placed on a server that sees this many GPUs, at least two."""
    found = {
        VICTIM: Placement(
            engine_args={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
        ),
        PIPELINE: Placement(
            engine_args={
                "model": str(known_answer_model_of_layers(2).path),
                "pipeline_parallel_size": 2,
            }
        ),
        RAY: Placement(
            engine_args={"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
        ),
        EACH_GPU: Placement("kind: KIND_GPU"),
        FIRST_GPU: Placement("kind: KIND_GPU gpus: [ 0 ]"),
        SECOND_GPU: Placement("kind: KIND_GPU gpus: [ 1 ]"),
        TWO_INSTANCES: Placement("kind: KIND_MODEL count: 2"),
        CHOSEN_GPU: Placement(parameters={"GPU_DEVICE_IDS": "1"}),
        SLICED_GPUS: Placement("kind: KIND_MODEL count: 2", parameters={"GPU_DEVICE_IDS": "1;0"}),
    }
    if gpus >= 4:
        found[FOUR] = Placement(engine_args={"tensor_parallel_size": 4})
    return found


def placed_spec(harness: Harness, name: str, placement: Placement) -> ModelSpec:
    """The known-answer model, whichever model is under test: its text shows a lost all-reduce."""
    return harness.model_spec(
        name,
        {"model": str(known_answer_model().path), **placement.engine_args},
        config=config_with(placement.group, **placement.parameters),
    )


def tensor_spec(harness: Harness) -> ModelSpec:
    """With adapters, and one sequence at a time, so that a cancelled one is seen to be gone."""
    return lora_spec(
        harness,
        TENSOR,
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        max_num_seqs=1,
    )


class ManyGpus:
    """Models side by side on a server with several GPUs, from their loads to their unloads."""

    def __init__(self, harness: Harness, server: ServerHandle) -> None:
        assert server.model_repository is not None
        self.harness = harness
        self.server = server
        self.seen = Seen()
        self.oracle = oracle()
        self.repository = ModelRepository(server)
        self.grpc = GrpcClient(server.endpoints.grpc, TENSOR, deadline=PATIENCE)
        self.specs = [tensor_spec(harness)] + [
            placed_spec(harness, name, placement)
            for name, placement in placements(len(server.gpus())).items()
        ]
        self.loaded: list[str] = []
        self.before: set[ServerProcess] = set()

    def run(self) -> Seen:
        seen = self.seen
        seen["texts expected"] = [expected_text(self.oracle, request) for request in REQUESTS]
        seen.watch(self.server)
        try:
            if not seen.step(self.load):
                return seen
            for step in (
                self.serve,
                self.stream_with_tensor_parallelism,
                self.cancel_with_tensor_parallelism,
                self.worker_dies,
                self.unload,
                self.masked_server,
            ):
                seen.step(step)
        finally:
            self.repository.close()
            self.grpc.close()
        return seen

    def load(self) -> None:
        seen = self.seen
        self.before = set(self.server.processes())
        seen.look("memory before", partial(self._memory, self.before))
        for spec in self.specs:
            self.repository.add(spec)

        def load(spec: ModelSpec) -> tuple[str, str | None]:
            return spec.name, self.repository.load(spec.name).error

        with ThreadPoolExecutor(LOADS) as pool:
            for name, error in pool.map(load, self.specs):
                seen[f"load error of {name}"] = error
                if error is None:
                    self.loaded.append(name)

    def serve(self) -> None:
        """Enough requests at the same time that every instance of a model gets some."""
        for name in self.loaded:
            client = self.grpc.for_model(name)
            answers = at_once(client.generate, REQUESTS * 4, 6)
            client.close()
            distinct = [set(answers[i :: len(REQUESTS)]) for i in range(len(REQUESTS))]
            self.seen[f"texts of {name}"] = [" | ".join(sorted(texts)) for texts in distinct]
            self.seen.look(f"memory of {name}", partial(self._memory_of_instances, name))

    def stream_with_tensor_parallelism(self) -> None:
        seen = self.seen
        request = greedy(PROMPTS[0], 100, stream=True)
        seen["stream"] = self.grpc.generate(request)
        seen["stream expected"] = expected_text(self.oracle, request)
        for adapter in ("backwards", "leaps"):
            sampling = {"temperature": 0, "max_tokens": LORA_TOKENS, "lora_name": adapter}
            asked = greedy(LORA_PROMPT, LORA_TOKENS, stream=True).but(sampling=sampling)
            seen[f"text with {adapter}"] = at_once(self.grpc.generate, [asked], 1)[0]
            seen[f"text expected with {adapter}"] = (
                oracle(adapter).answer(LORA_PROMPT, max_tokens=LORA_TOKENS).text
            )

    def cancel_with_tensor_parallelism(self) -> None:
        """The engine runs one sequence at a time: the next one starts when it is free."""
        seen = self.seen
        tokens = MAX_MODEL_LEN - 100
        sample = self.grpc.generate(greedy(PROMPTS[0], 100)).ok().seconds
        long = greedy(PROMPTS[0], tokens, stream=True)
        with self.grpc.open() as stream:
            for i in range(math.ceil(BUSY_SECONDS / (sample * tokens / 100))):
                stream.send(long.but(id=str(i)))
            first_of(stream)
            stream.cancel()
        answer = self.grpc.generate(greedy(PROMPTS[0], 4))
        seen["answer after the cancellation"] = answer
        seen["seconds of an answer before"] = sample

    def worker_dies(self) -> None:
        seen = self.seen
        processes = self._processes_of(VICTIM)
        engine = [process for process in processes if is_engine(process)]
        workers = [process for process in engine if is_engine(process, WORKER)]
        if not workers:
            untested("no process of the model looks like one of vLLM's workers")
        client = self.grpc.for_model(VICTIM)
        with client.open() as stream:
            stream.send(greedy(PROMPTS[0], MAX_MODEL_LEN - 100, stream=True))
            stream.half_close()
            answers = iter(stream)
            responses = [first_of(answers)]
            workers[-1].kill()
            killed_at = time.monotonic()
            responses += answers
        client.close()
        seen["responses around the death of a worker"] = responses
        seen["seconds from the death to the error"] = time.monotonic() - killed_at
        until(lambda: not living(engine), GONE_SECONDS)
        seen["left of the killed worker's engine"] = living(engine)
        seen["text of another model after the death"] = at_once(self.grpc.generate, REQUESTS[:1], 1)
        seen["text expected of another model"] = seen["texts expected"][:1]

    def unload(self) -> None:
        seen = self.seen
        processes = self._processes_of(TENSOR)
        started = time.monotonic()
        seen["error of the unload"] = self.repository.unload(TENSOR).error
        until(lambda: not living(processes), UNLOAD_SECONDS)
        seen["seconds of the unload"] = time.monotonic() - started
        seen["processes left after the unload"] = living(processes)
        for name in self.loaded:
            self.repository.unload(name)
        until(lambda: not living(set(self.server.processes()) - self.before), GONE_SECONDS)
        seen.look("memory after", lambda: self._memory(self.server.processes()))

    def masked_server(self) -> None:
        """A server that sees the second GPU only, and calls it 0."""
        harness, seen = self.harness, self.seen
        gpus = self.server.gpus()
        spec = harness.server_spec(
            placed_spec(harness, FIRST_GPU, Placement("kind: KIND_GPU gpus: [ 0 ]")),
            env={VISIBLE_DEVICES: self.server.gpu_names()[1]},
        )
        with harness.booted(spec, "sees the second GPU only") as handle:
            with HttpClient(handle.endpoints.http, FIRST_GPU, deadline=PATIENCE) as http:
                seen["texts under the mask"] = at_once(http.generate, REQUESTS, 1)
            seen.look(
                "memory under the mask",
                lambda: memory_or_untested(handle, handle.processes(), gpus),
            )

    def _processes_of(self, model: str) -> list[ServerProcess]:
        """The stubs of a model, with all their descendants."""
        return [process for instance in self._instances_of(model) for process in instance]

    def _instances_of(self, model: str) -> list[list[ServerProcess]]:
        stubs = [process for process in self.server.processes() if is_stub(process, model)]
        return [[stub, *stub.children(recursive=True)] for stub in stubs]

    def _memory_of_instances(self, model: str) -> list[list[int]]:
        """Bytes on each GPU, of each instance of the model, in the order of their names."""
        instances = sorted(self._instances_of(model), key=lambda one: stub_instance(one[0], model))
        return [self._memory(processes) for processes in instances]

    def _memory(self, processes: Iterable[ServerProcess]) -> list[int]:
        return memory_or_untested(self.server, processes)


def memory_or_untested(
    server: ServerHandle, processes: Iterable[ServerProcess], gpus: Sequence[Gpu] | None = None
) -> list[int]:
    try:
        return server.gpu_memory(processes, gpus)
    except MemoryUnknown as reason:
        untested(str(reason))


def holding(memory: Sequence[int]) -> list[int]:
    """The numbers of the GPUs of which something is held."""
    return [number for number, held in enumerate(memory) if held > 0]
